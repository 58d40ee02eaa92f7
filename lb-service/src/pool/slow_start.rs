//! Slow start: a backend that comes back gets its share of the load gradually.
//!
//! Its caches are cold and it has no open connections, so the whole share at once might overload it again. Envoy and
//! nginx call this `slow_start`, HAProxy `slowstart`. The share grows linearly from a tenth to the whole, over a window
//! that begins when the backend comes back. Slow start does not apply at the start of the process, when all backends
//! are new.
//!
//! The policy selects a backend as usual, and the pool then skips it with the probability that its share leaves, so
//! slow start works with any policy. The draw is random for each request. Where a policy maps a key to a backend, the
//! draw is computed from the key and the backend instead: a key that has moved back stays, because the share only
//! grows.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::address::UpstreamAddress;
use super::outlier::nanoseconds;

/// The share of its weight with which a backend begins.
const FIRST: f64 = 0.1;

/// The time at which a backend came back.
#[derive(Debug)]
pub(super) struct Comeback {
    epoch: Instant,
    /// Nanoseconds after `epoch`. Zero: the backend has been in service since the start of the process.
    at: AtomicU64,
}

/// Returns the share of its weight, from 0.1 to 1, that a backend gets after this time in service.
pub(super) fn share(since_back: Duration, window: Duration) -> f64 {
    if since_back >= window {
        return 1.0;
    }
    FIRST + (1.0 - FIRST) * since_back.div_duration_f64(window)
}

/// Returns whether a backend with this share takes a request with this draw, a number from 0 to below 1.
pub(super) fn admits(share: f64, draw: f64) -> bool {
    draw < share
}

/// Returns the draw, from 0 to below 1, of a key at a backend. It is the same in every process and on every machine.
pub(super) fn draw_for_key(key: &[u8], address: &UpstreamAddress) -> f64 {
    let hash = match address {
        UpstreamAddress::Tcp(address) => fnv1a(hash_of_ip(address.ip()), &address.port().to_be_bytes()),
        UpstreamAddress::Unix(path) => fnv1a(FNV_OFFSET, path.as_path().as_os_str().as_bytes()),
    };
    let hash = fnv1a(hash, key);
    (scattered(hash) >> 11) as f64 / (1u64 << 53) as f64
}

fn hash_of_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => fnv1a(FNV_OFFSET, &ip.octets()),
        IpAddr::V6(ip) => fnv1a(FNV_OFFSET, &ip.octets()),
    }
}

/// A constant of 64-bit FNV (RFC 9923).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a, continued from `hash`. The hash of the standard library is not used, because it can change with its version.
fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// The finalizer of MurmurHash3. Without it, the last bytes of a key hardly affect the upper bits.
fn scattered(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

// === impl Comeback ===

impl Comeback {
    /// Creates the record of a backend that has been in service since the start. Later times must not be before
    /// `epoch`.
    pub(super) fn new(epoch: Instant) -> Self {
        Self { epoch, at: AtomicU64::new(0) }
    }

    /// Records that the backend comes back at this time, which can lie in the future: the end of an ejection is known
    /// when it begins. The latest time counts.
    pub(super) fn came_back(&self, at: Instant) {
        self.at.fetch_max(nanoseconds(self.epoch, at).max(1), Ordering::Relaxed);
    }

    /// Returns the share of its weight, from 0.1 to 1. Costs one load for a backend that never came back.
    pub(super) fn share(&self, now: Instant, window: Duration) -> f64 {
        match self.at.load(Ordering::Relaxed) {
            0 => 1.0,
            at => share(Duration::from_nanos(nanoseconds(self.epoch, now).saturating_sub(at)), window),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const WINDOW: Duration = Duration::from_secs(30);

    fn address(port: u16) -> UpstreamAddress {
        ([10, 0, 0, 1], port).into()
    }

    fn keys(count: u32) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255))
    }

    #[test]
    fn the_ramp_is_linear_from_a_tenth_to_all() {
        for (seconds, expected) in [(0, 0.1), (10, 0.4), (15, 0.55), (20, 0.7), (30, 1.0), (31, 1.0)] {
            let share = share(Duration::from_secs(seconds), WINDOW);
            assert!((share - expected).abs() < 1e-12, "{share} after {seconds} s");
        }
        assert_eq!(share(Duration::ZERO, Duration::ZERO).to_bits(), 1f64.to_bits());
    }

    #[test]
    fn many_random_draws_admit_the_share() {
        let share = share(Duration::from_secs(10), WINDOW);
        let admitted = (0..100_000).filter(|n| admits(share, f64::from(*n) / 100_000.0)).count();
        assert!(admitted.abs_diff(40_000) <= 1, "{admitted}");
        assert!((0..100_000).all(|n| admits(1.0, f64::from(n) / 100_000.0)));
    }

    #[test]
    fn many_keys_admit_the_share_at_every_backend() {
        for port in 1..20 {
            let admitted =
                keys(20_000).filter(|key| admits(0.4, draw_for_key(key.as_bytes(), &address(port))));
            // The standard deviation is 69.
            assert!(admitted.count().abs_diff(8000) < 350, "port {port}");
        }
    }

    #[test]
    fn backends_draw_independently() {
        let both = |key: &String| {
            [1, 2].iter().all(|port| admits(0.4, draw_for_key(key.as_bytes(), &address(*port))))
        };
        let admitted = keys(20_000).filter(both).count();
        assert!(admitted.abs_diff(3200) < 300, "0.4 times 0.4 of the keys: {admitted}");
    }

    #[test]
    fn a_draw_is_the_same_in_every_process() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(FNV_OFFSET, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
        for address in ["[2001:db8::1]:443", "unix:/run/app.sock"] {
            let address = address.parse().unwrap();
            assert_eq!(draw_for_key(b"key", &address).to_bits(), draw_for_key(b"key", &address).to_bits());
        }
    }

    #[test]
    fn slow_start_does_not_apply_at_the_start_of_the_process() {
        let epoch = Instant::now();
        let comeback = Comeback::new(epoch);
        assert!(comeback.share(epoch, WINDOW) >= 1.0);
    }

    #[test]
    fn a_backend_that_came_back_ramps_up_to_its_whole_share() {
        let epoch = Instant::now();
        let comeback = Comeback::new(epoch);
        comeback.came_back(epoch);
        assert!((comeback.share(epoch, WINDOW) - 0.1).abs() < 1e-9, "even at the first nanosecond");
        assert!((comeback.share(epoch + WINDOW / 3, WINDOW) - 0.4).abs() < 1e-9);
        assert!(comeback.share(epoch + 2 * WINDOW, WINDOW) >= 1.0);
        comeback.came_back(epoch + 3 * WINDOW);
        assert!((comeback.share(epoch + 3 * WINDOW, WINDOW) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn the_latest_comeback_counts_even_if_it_lies_in_the_future() {
        let epoch = Instant::now();
        let comeback = Comeback::new(epoch);
        comeback.came_back(epoch + WINDOW);
        comeback.came_back(epoch + WINDOW / 2);
        assert!((comeback.share(epoch, WINDOW) - 0.1).abs() < 1e-9);
        assert!((comeback.share(epoch + WINDOW, WINDOW) - 0.1).abs() < 1e-9);
        assert!((comeback.share(epoch + WINDOW * 3 / 2, WINDOW) - 0.55).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn the_share_never_shrinks(window in 1u64..100_000, a in 0u64..200_000, b in 0u64..200_000) {
            let at = |millis| share(Duration::from_millis(millis), Duration::from_millis(window));
            let (earlier, later) = (at(a.min(b)), at(a.max(b)));
            prop_assert!((FIRST..=1.0).contains(&earlier) && earlier <= later && later <= 1.0);
        }

        #[test]
        fn a_key_that_came_back_stays(key in any::<Vec<u8>>(), port: u16, a in 0u64..40, b in 0u64..40) {
            let admitted = |seconds| {
                admits(share(Duration::from_secs(seconds), WINDOW), draw_for_key(&key, &address(port)))
            };
            prop_assert!(!admitted(a.min(b)) || admitted(a.max(b)));
            prop_assert!(admitted(30));
        }

        #[test]
        fn a_draw_is_within_its_range(key in any::<Vec<u8>>(), ip: u128, port: u16) {
            let address = (std::net::Ipv6Addr::from_bits(ip), port).into();
            let draw = draw_for_key(&key, &address);
            prop_assert!((0.0..1.0).contains(&draw));
            prop_assert_eq!(draw.to_bits(), draw_for_key(&key, &address).to_bits());
        }
    }
}
