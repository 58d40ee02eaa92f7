//! Changes to the head of a message that is passed on, whatever holds it.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The head of a message that is about to be sent.
pub(crate) trait HeadEdit {
    /// Returns whether a line of this name is sent.
    fn contains(&self, name: &HeaderName) -> bool;

    /// Replaces all lines of this name by one.
    fn set(&mut self, name: HeaderName, value: HeaderValue);

    /// Adds a line.
    fn add(&mut self, name: HeaderName, value: HeaderValue);

    /// Removes all lines of this name.
    fn remove(&mut self, name: &HeaderName);
}

impl HeadEdit for HeaderMap {
    fn contains(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.append(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }
}
