//! A byte pattern of any length whose every position can be checked, for bodies too large to keep.

use std::sync::OnceLock;

/// A prime, so that no power-of-two buffer that is lost, doubled or swapped leaves the pattern intact.
const PERIOD: usize = 65_521;

/// The bytes from `offset` on; never empty, at most one period long.
pub fn from(offset: u64) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).expect("below the period");
    &block()[start..]
}

/// So many bytes of the pattern from `offset` on.
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

/// Whether `bytes` are those of the pattern from `offset` on.
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
    /// Bytes seen.
    pub length: u64,
    /// Whether all bytes seen are those of the pattern.
    pub is_pattern: bool,
    /// The first [`Meter::KEPT`] bytes.
    pub start: Vec<u8>,
    /// Where in the pattern the body begins.
    seed: u64,
}

impl Meter {
    /// How much of a body is kept.
    pub const KEPT: usize = 64 * 1024;

    /// A meter that has seen nothing.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// The same, for a body that is the pattern from `seed` on: bodies of other seeds are none of its.
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
    fn a_meter_tells_the_pattern_from_one_with_a_lost_buffer() {
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
    fn a_meter_tells_bodies_of_different_seeds_apart() {
        for (seed, same) in [(7, true), (8, false), (65_528, true)] {
            let mut meter = Meter::at(seed);
            meter.feed(&bytes(7, 100_000));
            assert_eq!(meter.is_pattern, same, "{seed}");
        }
    }
}
