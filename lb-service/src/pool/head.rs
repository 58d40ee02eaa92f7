//! The head of a request, as sessions, hashes and routes read it, independent of its storage.
//!
//! [`Head`] is implemented for `http::request::Parts`, which the heads of Pingora and of HTTP/2 are made of. A head
//! that is an index over the bytes that arrived can implement it as well.

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

/// The fields of a message.
pub trait Fields {
    /// Returns the values of all lines of this name, in their order.
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a, Self>;

    /// Returns the value of the first line of this name.
    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Returns the name of each field. A name can occur several times, and in any case.
    fn names(&self) -> impl Iterator<Item = &[u8]>;
}

/// The head of a request.
pub trait Head: Fields {
    /// Returns the method.
    fn method(&self) -> &Method;

    /// Returns the version of HTTP that the client speaks.
    fn version(&self) -> Version;

    /// Returns the host and the port in the target; `None` if the target is not absolute.
    fn authority(&self) -> Option<&str>;

    /// Returns the path in the target, without the query.
    fn path(&self) -> &str;

    /// Returns the query in the target, without its `?`.
    fn query(&self) -> Option<&str>;

    /// Returns the path and the query as they were sent.
    fn path_and_query(&self) -> Option<&str>;

    /// Returns the host that the request is for: from its target if that is absolute (RFC 9112, 3.2.2), else from its
    /// `Host` field. A field with other bytes than visible ASCII and tabs names no host.
    fn host(&self) -> Option<&str> {
        self.authority().or_else(|| visible_ascii(self.first(&HOST)?))
    }
}

/// Returns the value of a field as text, if it has only visible ASCII, spaces and tabs.
fn visible_ascii(value: &[u8]) -> Option<&str> {
    let is_visible = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    str::from_utf8(value).ok().filter(|_| is_visible)
}

impl Fields for HeaderMap {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.keys().map(|name| name.as_str().as_bytes())
    }
}

impl Fields for Parts {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.headers.all(name)
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers.first(name)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.names()
    }
}

impl Head for Parts {
    fn method(&self) -> &Method {
        &self.method
    }

    fn version(&self) -> Version {
        self.version
    }

    fn authority(&self) -> Option<&str> {
        self.uri.authority().map(http::uri::Authority::as_str)
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn path_and_query(&self) -> Option<&str> {
        self.uri.path_and_query().map(http::uri::PathAndQuery::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, host: Option<&str>) -> Parts {
        let request = http::Request::builder().uri(target);
        let request = host.into_iter().fold(request, |request, host| request.header(HOST, host));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_host_comes_from_an_absolute_target_or_else_from_the_field() {
        assert_eq!(head("/", Some("a.test")).host(), Some("a.test"));
        assert_eq!(head("http://b.test:81/x", Some("a.test")).host(), Some("b.test:81"));
        assert_eq!(head("/", None).host(), None);
    }

    #[test]
    fn a_host_field_with_other_bytes_than_visible_ascii_names_no_host() {
        for bytes in [&b"\xc3\xa9.example.test"[..], b"a\xff"] {
            let mut head = head("/", None);
            head.headers.insert(HOST, HeaderValue::from_bytes(bytes).unwrap());
            assert_eq!(head.host(), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_target_is_split_into_its_parts() {
        let head = head("/a/b?c=d", None);
        assert_eq!((head.path(), head.query()), ("/a/b", Some("c=d")));
        assert_eq!(head.path_and_query(), Some("/a/b?c=d"));
    }
}
