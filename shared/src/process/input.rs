//! A text as the standard input of a second process or a new process, if this process was started with `-c -`.

use std::fs::File;
use std::io::{self, Seek, Write};

use rustix::fs::{MemfdFlags, memfd_create};

/// Creates a file in memory with this text, positioned at its beginning. A pipe would hold only 64 KiB until it is
/// read.
///
/// # Errors
/// Fails if the system has no memory left.
pub(super) fn of(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("configuration", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_longer_than_a_pipe_is_read_from_its_beginning() {
        let text = "pools: {}\n".repeat(20_000);
        assert_eq!(io::read_to_string(of(&text).unwrap()).unwrap(), text);
    }
}
