//! What the backends of a pool keep across reloads, by address.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::address::UpstreamAddress;

/// Values that belong to addresses. A value lives as long as a backend with its address, in any snapshot.
#[derive(Debug)]
pub(super) struct ByAddress<T>(Mutex<HashMap<UpstreamAddress, Weak<T>>>);

impl<T> ByAddress<T> {
    /// Returns the value of the backend at `address`. It is created if none is in use.
    pub(super) fn of(&self, address: &UpstreamAddress, create: impl FnOnce() -> T) -> Arc<T> {
        let mut values = self.0.lock();
        if let Some(value) = values.get(address).and_then(Weak::upgrade) {
            return value;
        }
        // Unused entries are removed only at powers of two, so that the map has at most twice the necessary size at
        // little cost.
        if values.len().is_power_of_two() {
            values.retain(|_, value| value.strong_count() > 0);
        }
        let value = Arc::new(create());
        values.insert(address.clone(), Arc::downgrade(&value));
        value
    }

    /// Returns the value of the backend at `address`; `None` if none is in use.
    pub(super) fn find(&self, address: &UpstreamAddress) -> Option<Arc<T>> {
        self.0.lock().get(address).and_then(Weak::upgrade)
    }
}

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lives_as_long_as_it_is_used() {
        let (values, address) = (ByAddress::default(), "10.0.0.1:80".parse().unwrap());
        let one = values.of(&address, || 1);
        assert_eq!(*values.of(&address, || 2), 1);
        drop(one);
        assert_eq!(values.find(&address), None);
        assert_eq!(*values.of(&address, || 3), 3);
    }
}
