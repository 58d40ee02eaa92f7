//! A byte pattern of any length in which every position can be checked, for bodies that are too large to keep.

use std::sync::OnceLock;

/// The length of the pattern, in bytes. It is a prime, so that a lost, doubled or swapped power-of-two buffer always
/// breaks the pattern.
const PERIOD: usize = 65_521;

/// Returns the bytes of the pattern from `offset` on: at least one byte and at most one period.
pub fn from(offset: u64) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).expect("below the period");
    &block()[start..]
}

/// Returns `length` bytes of the pattern from `offset` on.
pub fn bytes(mut offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let piece = from(offset);
        let piece = &piece[..piece.len().min(length - bytes.len())];
        bytes.extend_from_slice(piece);
        offset += piece.len() as u64;
    }
    bytes
}

/// Whether `bytes` equal the pattern from `offset` on.
pub fn matches(mut offset: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let expected = from(offset);
        let common = expected.len().min(bytes.len());
        if bytes[..common] != expected[..common] {
            return false;
        }
        bytes = &bytes[common..];
        offset += common as u64;
    }
    true
}

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        std::iter::repeat_with(next).take(PERIOD).collect()
    })
}

/// Measures a body as it passes: its length, whether it is the pattern, and its beginning.
#[derive(Debug, Clone)]
pub struct Meter {
    /// The number of bytes so far.
    pub length: u64,
    /// Whether all bytes so far equal the pattern.
    pub is_pattern: bool,
    /// The first [`Meter::KEPT`] bytes.
    pub start: Vec<u8>,
    /// The position in the pattern at which the body begins.
    seed: u64,
}

impl Meter {
    /// The number of bytes of a body that are kept.
    pub const KEPT: usize = 64 * 1024;

    /// Creates a meter for a body that is the pattern from its beginning.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// Creates a meter for a body that is the pattern from `seed` on. A body with another seed does not match.
    pub fn at(seed: u64) -> Self {
        Self { length: 0, is_pattern: true, start: Vec::new(), seed }
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.is_pattern = self.is_pattern && matches(self.seed + self.length, bytes);
        self.length += bytes.len() as u64;
        let room = (Self::KEPT - self.start.len()).min(bytes.len());
        self.start.extend_from_slice(&bytes[..room]);
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_detects_a_lost_buffer() {
        let whole: Vec<u8> = from(0).iter().chain(from(0)).copied().collect();
        let mut meter = Meter::new();
        whole.chunks(1000).for_each(|chunk| meter.feed(chunk));
        assert!(meter.is_pattern);
        assert_eq!(meter.length, whole.len() as u64);

        let mut broken = Meter::new();
        broken.feed(&whole[..4096]);
        broken.feed(&whole[8192..]);
        assert!(!broken.is_pattern);
    }

    #[test]
    fn a_meter_rejects_a_body_with_another_seed() {
        for (seed, same) in [(7, true), (8, false), (65_528, true)] {
            let mut meter = Meter::at(seed);
            meter.feed(&bytes(7, 100_000));
            assert_eq!(meter.is_pattern, same, "{seed}");
        }
    }
}
