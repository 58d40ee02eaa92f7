//! Parts of HTTP requests, some of which are types of the crate `http`.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method};
use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar, TextScalar};

/// A host name with an optional port, as in a `Host` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHeader(pub HeaderValue);

/// The path of a request: begins with `/`, without query and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath(pub String);

/// The value of a request header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderText(pub HeaderValue);

// === hosts ===

impl HostHeader {
    /// Returns the host, and the port if there is one.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("the authority of a URI has visible ASCII characters only")
    }
}

impl TextScalar for HostHeader {
    const EXPECTED: &'static str = "a host name with an optional port";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let authority = Authority::try_from(text).ok();
        let is_host = authority.is_some_and(|it| !it.host().is_empty() && !text.contains('@'));
        let value = HeaderValue::from_str(text).ok().filter(|_| is_host);
        value.map(Self).ok_or_else(|| Self::unexpected(text).into())
    }
}

// === paths ===

impl TextScalar for RequestPath {
    const EXPECTED: &'static str = "a path that begins with / such as /v1";
    const PATTERN: &'static str = "^/[^?#\\s]*$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if text.starts_with(['~', '^']) {
            let hint =
                "regular expressions are not supported: write the beginning of the path as `path_prefix`";
            return Err(format!("expected {}, found {text:?}\n{hint}", Self::expected()).into());
        }
        begins_with_slash::<Self>(text)?;
        if text.contains(['?', '#']) {
            return Err(format!(
                "{text:?}: routes match only the path, without the query\nremove the text after the path"
            )
            .into());
        }
        target(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TextScalar for PathAndQuery {
    const EXPECTED: &'static str = "a path that begins with / such as /healthz";
    const PATTERN: &'static str = "^/[^#\\s]*$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        begins_with_slash::<Self>(text)?;
        if let Some((path, _)) = text.split_once('#') {
            return Err(format!("{text:?} has a fragment, which clients do not send\nwrite {path}").into());
        }
        target(text)
    }
}

fn begins_with_slash<T: Scalar>(text: &str) -> Result<(), Rejection> {
    if text.starts_with('/') {
        return Ok(());
    }
    let right = text.trim_start_matches(['*', '.']);
    Err(format!("expected {}, found {text:?}\nwrite /{right}", T::expected()).into())
}

fn target(text: &str) -> Result<PathAndQuery, Rejection> {
    let error = || format!("{text:?} has a character that a path cannot have\npercent-encode it").into();
    PathAndQuery::try_from(text).map_err(|_| error())
}

// === methods and headers ===

impl TextScalar for Method {
    const EXPECTED: &'static str = "a method in upper case such as GET or POST";
    const PATTERN: &'static str = "^[^a-z\\s]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let upper = text.to_ascii_uppercase();
        match Self::from_bytes(text.as_bytes()) {
            Ok(method) if upper == text => Ok(method),
            Ok(_) => Err(format!("expected {}, found {text:?}\nwrite {upper}", Self::expected()).into()),
            Err(_) => Err(Self::unexpected(text).into()),
        }
    }
}

impl TextScalar for HeaderName {
    const EXPECTED: &'static str = "the name of a header such as X-Canary";
    const PATTERN: &'static str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let name = Self::from_bytes(text.as_bytes());
        name.map_err(|_| Self::unexpected(text).into())
    }
}

impl TextScalar for HeaderText {
    const EXPECTED: &'static str = "a string";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if text.trim() != text {
            let message = "the value of a header cannot begin or end with white space";
            return Err(format!("{message}, found {text:?}").into());
        }
        let value = HeaderValue::from_str(text);
        value.map(Self).map_err(|_| format!("{text:?} has a character that a header cannot have").into())
    }

    fn text_schema() -> Schema {
        json_schema!({"type": "string"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn methods_are_in_upper_case() {
        accepts::<Method>(&["GET", "PATCH", "M-SEARCH"]);
        assert!(rejection::<Method>("get").ends_with("write GET"));
        assert!(rejection::<Method>("").contains("expected a method"));
    }

    #[test]
    fn paths_begin_with_a_slash() {
        accepts::<RequestPath>(&["/", "/a/b", "/a%20b"]);
        assert!(rejection::<RequestPath>("a").ends_with("write /a"));
        assert!(rejection::<RequestPath>("~ ^/a").contains("regular expressions are not supported"));
        assert!(rejection::<RequestPath>("/a?b").contains("only the path"));
        assert!(rejection::<RequestPath>("/a b").contains("percent-encode"));
        accepts::<PathAndQuery>(&["/", "/healthz?deep=1"]);
        assert!(rejection::<PathAndQuery>("healthz").ends_with("write /healthz"));
        assert!(rejection::<PathAndQuery>("/a#b").ends_with("write /a"));
        assert!(rejection::<PathAndQuery>("/a b").contains("percent-encode"));
    }

    #[test]
    fn hosts_can_have_a_port() {
        accepts::<HostHeader>(&["example.com", "example.com:80", "[::1]:80"]);
        assert!(rejection::<HostHeader>("a b").contains("a host name"));
        assert!(rejection::<HostHeader>("me@example.com").contains("a host name"));
    }

    #[test]
    fn headers_are_valid_in_a_request() {
        assert!(rejection::<HeaderName>("X Canary").contains("the name of a header"));
        assert!(rejection::<HeaderText>(" 1").contains("white space"));
    }
}
