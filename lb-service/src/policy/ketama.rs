//! Consistent hashing on a ring of points: ketama, with nginx's mapping.
//!
//! Each backend has 160 points on the ring per unit of its weight. A key belongs to the first point at or after its
//! hash. So if a backend is removed, only its keys move, to the next point clockwise (Karger et al., "Consistent
//! hashing and random trees", 1997; Richard Jones's libketama, 2007).
//!
//! The points are those of nginx's `hash … consistent` (`ngx_http_upstream_hash_module.c`) and of Perl's
//! Cache::Memcached::Fast, so that an nginx in front of the same caches maps keys to the same ones. A point is the
//! CRC-32 of the host, a zero byte, the port, and the four bytes of the previous point, lowest first. nginx uses the
//! host as written in its configuration. For equal mappings, that must be the address with its port, and IPv6 in
//! brackets and in the usual short form. If several backends have a point in the same place, nginx keeps the one that
//! is written first, and this code keeps the one with the lowest address.
//!
//! A look-up is a binary search. A ring has at most 8 Mi points (64 MiB). If the weights require more, each backend
//! gets its share of them, and at least one.

use pingora::lb::Backend;
use pingora::protocols::l4::socket::SocketAddr;

/// The number of points per unit of weight.
const POINTS_PER_WEIGHT: u128 = 160;

/// The most points of a ring, not counting one additional point per backend.
const MAX_POINTS: u128 = if cfg!(test) { 1 << 16 } else { 1 << 23 };

/// The points of all backends.
#[derive(Debug)]
pub(super) struct Ring {
    /// Sorted points, each with its place on the ring in the high half and its backend in the low half.
    points: Box<[u64]>,
}

// === impl Ring ===

impl Ring {
    /// Creates a ring of backends with these weights. Backends of weight 0 have no points.
    pub(super) fn new(backends: &[Backend], weights: &[usize]) -> Self {
        let mut points = Vec::new();
        for (index, (backend, count)) in backends.iter().zip(counts(weights)).enumerate() {
            let places = places(&backend.addr).take(count);
            points.extend(places.map(|place| u64::from(place) << 32 | index as u64));
        }
        points.sort_unstable();
        points.dedup_by_key(|point| *point >> 32);
        Self { points: points.into() }
    }

    /// Returns the point to which a key at this place belongs.
    pub(super) fn find(&self, place: u32) -> usize {
        self.points.partition_point(|point| ((point >> 32) as u32) < place)
    }

    /// Returns the backend of a point, counted clockwise and wrapping around, or `None` without points.
    pub(super) fn at(&self, point: usize) -> Option<usize> {
        let point = if point < self.points.len() { point } else { point.checked_rem(self.points.len())? };
        Some(self.points[point] as u32 as usize)
    }
}

/// Returns the place of a key on the ring.
pub(super) fn place(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

/// Returns the number of points of each backend.
fn counts(weights: &[usize]) -> impl Iterator<Item = usize> {
    let wanted: u128 = weights.iter().map(|weight| *weight as u128 * POINTS_PER_WEIGHT).sum();
    weights.iter().map(move |weight| {
        let own = *weight as u128 * POINTS_PER_WEIGHT;
        let count = if wanted > MAX_POINTS { (own * MAX_POINTS / wanted).max(own.min(1)) } else { own };
        count as usize
    })
}

/// Returns the places of a backend's points, as an endless iterator.
fn places(address: &SocketAddr) -> impl Iterator<Item = u32> {
    let base = name(address);
    let next = move |previous: u32| {
        let mut hasher = base.clone();
        hasher.update(&previous.to_le_bytes());
        hasher.finalize()
    };
    std::iter::successors(Some(next(0)), move |previous| Some(next(*previous)))
}

/// Returns the hash of the backend's name, which is part of each point: host, zero byte, port. For a Unix socket, it is
/// the path without a port.
fn name(address: &SocketAddr) -> crc32fast::Hasher {
    let text = address.to_string();
    let (host, port) = match address.as_inet() {
        Some(_) => text.rsplit_once(':').unwrap_or((&text, "")),
        None => (text.as_str(), ""),
    };
    let mut hasher = crc32fast::Hasher::new();
    for part in [host.as_bytes(), &[0], port.as_bytes()] {
        hasher.update(part);
    }
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_assume, proptest};

    fn ring(weights: &[usize]) -> Ring {
        let backend = |index| Backend::new(&format!("10.0.{}.{}:80", index / 200, index % 200)).unwrap();
        Ring::new(&(0..weights.len()).map(backend).collect::<Vec<_>>(), weights)
    }

    fn owner(ring: &Ring, key: usize) -> usize {
        ring.at(ring.find(place(format!("key {key}").as_bytes()))).unwrap()
    }

    /// CRC-32, bit by bit, as in its definition.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc: u32, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        })
    }

    #[test]
    fn points_are_chained_checksums() {
        let mut previous = 0;
        for place in places(&"10.0.0.1:80".parse().unwrap()).take(10) {
            let text = [b"10.0.0.1\x0080".as_slice(), &u32::to_le_bytes(previous)].concat();
            assert_eq!(place, crc32(&text));
            previous = place;
        }
        let first = |address: &str| places(&address.parse().unwrap()).next().unwrap();
        assert_eq!(first("[::1]:80"), crc32(b"[::1]\x0080\0\0\0\0"));
        assert_eq!(first("unix:/run/cache"), crc32(b"/run/cache\0\0\0\0\0"));
    }

    #[test]
    fn a_key_belongs_to_the_next_point_and_wraps_around() {
        let two = Ring { points: [10u64 << 32, 20 << 32 | 1].into() };
        assert_eq!([two.at(0), two.at(1), two.at(2), two.at(3)], [Some(0), Some(1), Some(0), Some(1)]);
        let ring = ring(&[1, 1]);
        let places: Vec<u32> = ring.points.iter().map(|point| (point >> 32) as u32).collect();
        for key in 0..1000 {
            let own = crc32(format!("key {key}").as_bytes());
            let expected = places.iter().position(|point| *point >= own).unwrap_or(places.len());
            assert_eq!(ring.find(place(format!("key {key}").as_bytes())), expected);
        }
    }

    #[test]
    fn a_ring_without_points_has_no_owner() {
        assert_eq!(ring(&[]).at(0), None);
        assert_eq!(ring(&[0]).at(7), None);
    }

    #[test]
    fn the_removal_of_a_backend_moves_only_its_own_keys() {
        let (before, after) = (ring(&[1; 10]), ring(&[1, 1, 1, 1, 0, 1, 1, 1, 1, 1]));
        let mut moved = 0;
        for key in 0..20_000 {
            let owner_before = owner(&before, key);
            if owner(&after, key) != owner_before {
                assert_eq!(owner_before, 4);
                moved += 1;
            }
        }
        assert!((moved as f64 / 20_000.0 - 0.1).abs() < 0.03, "{moved}");
    }

    #[test]
    fn shares_follow_the_weights() {
        let ring = ring(&[8, 4, 4]);
        let first = (0..20_000).filter(|key| owner(&ring, *key) == 0).count();
        assert!((first as f64 / 20_000.0 - 0.5).abs() < 0.05, "{first}");
    }

    #[test]
    fn the_number_of_points_is_bounded() {
        let points = |weights: &[usize]| counts(weights).collect::<Vec<_>>();
        assert_eq!(points(&[1, 0, 3]), [160, 0, 480]);
        let half = MAX_POINTS as usize / 2;
        assert_eq!(points(&[usize::MAX, usize::MAX, 0, 1]), [half - 1, half - 1, 0, 1]);
    }

    proptest! {
        #[test]
        fn the_owner_of_a_key_has_a_positive_weight(weights in vec(any::<usize>(), 1..6), key in any::<u64>()) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let ring = ring(&weights);
            let owner = ring.at(ring.find(place(&key.to_le_bytes()))).unwrap();
            prop_assert!(weights[owner] > 0);
        }

        #[test]
        fn points_are_sorted_by_place(weights in vec(0usize..5, 1..10)) {
            let ring = ring(&weights);
            prop_assert!(ring.points.windows(2).all(|pair| pair[0] >> 32 < pair[1] >> 32));
            let wanted = weights.iter().sum::<usize>() * 160;
            prop_assert!(ring.points.len() <= wanted && ring.points.len() + 5 > wanted);
            prop_assert_eq!(ring.at(ring.points.len()), ring.at(0));
        }
    }
}
