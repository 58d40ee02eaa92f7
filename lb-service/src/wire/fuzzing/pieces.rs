//! The ways to split bytes into pieces.

/// Returns splits of the bytes: all at once, single bytes, and pieces of up to 16 bytes whose sizes depend on the
/// bytes. A split is a list of the ends of its pieces.
pub(super) fn splits(bytes: &[u8]) -> [Vec<usize>; 3] {
    [vec![bytes.len()], (1..=bytes.len()).collect(), drawn(bytes)]
}

/// Returns the ends of pieces whose sizes depend on the bytes.
pub(super) fn drawn(bytes: &[u8]) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(crc32fast::hash(bytes).into());
    let mut ends = Vec::new();
    while ends.last().is_none_or(|end| *end < bytes.len()) {
        let end = ends.last().copied().unwrap_or(0) + random.usize(1..=16);
        ends.push(end.min(bytes.len()));
    }
    ends
}

/// Returns the only result of all splits.
///
/// # Panics
///
/// Panics if the results differ.
pub(super) fn in_each_split<T: PartialEq + std::fmt::Debug>(bytes: &[u8], read: impl Fn(&[usize]) -> T) -> T {
    let [whole, others @ ..] = splits(bytes);
    let result = read(&whole);
    for ends in others {
        assert_eq!(read(&ends), result, "pieces that end at {ends:?} give another result than the whole");
    }
    result
}
