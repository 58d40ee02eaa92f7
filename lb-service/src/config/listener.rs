//! A listener, in its short form (an address) and its long form (a mapping).

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::{Name, Scalar, Text};

use crate::listener::ListenAddress;

/// An address that clients connect to.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The address to listen on.
    pub address: Text<ListenAddress>,
    /// The name in routes, metrics and the access log. `None` means the address.
    pub name: Option<Text<Name>>,
}

/// Long form of a listener.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListenerMapping {
    /// The address to listen on: an IP address and a port such as `0.0.0.0:6188`, `:6188` for all IPv4 addresses, or
    /// `unix:/path`.
    address: Text<ListenAddress>,
    /// The name in routes, metrics and the access log; default: the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Text<Name>>,
}

// === impl ListenerConfig ===

impl ListenerConfig {
    /// Returns the name in routes, metrics and the access log.
    pub fn name(&self) -> String {
        self.name.as_ref().map_or_else(|| self.address.get().to_string(), |name| name.written().to_owned())
    }

    /// Whether `text` refers to this listener: by its name, or by any spelling of its address if it has no name.
    pub fn is_called(&self, text: &str) -> bool {
        let is_address =
            || ListenAddress::from_text(text).is_ok_and(|address| address == *self.address.get());
        self.name() == text || (self.name.is_none() && is_address())
    }
}

impl From<ListenerMapping> for ListenerConfig {
    fn from(mapping: ListenerMapping) -> Self {
        let ListenerMapping { address, name } = mapping;
        Self { address, name }
    }
}

impl<'de> Deserialize<'de> for ListenerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListenerVisitor)
    }
}

impl Serialize for ListenerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { address, name } = self.clone();
        ListenerMapping { address, name }.serialize(serializer)
    }
}

impl JsonSchema for ListenerConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Listener".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long = ListenerMapping::json_schema(generator);
        json_schema!({"anyOf": [ListenAddress::schema(), long]})
    }
}

struct ListenerVisitor;

impl<'de> Visitor<'de> for ListenerVisitor {
    type Value = ListenerConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 0.0.0.0:6188, or {address: 0.0.0.0:6188, name: web}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenerConfig, E> {
        let address = Text::new(text).map_err(E::custom)?;
        Ok(ListenerConfig { address, name: None })
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ListenerConfig, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ListenerConfig, A::Error> {
        ListenerMapping::deserialize(de::value::MapAccessDeserializer::new(map)).map(ListenerConfig::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<ListenerConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn listeners_have_a_short_and_a_long_form() {
        for (short, address) in
            [("127.0.0.1:80", "127.0.0.1:80"), (":8080", "0.0.0.0:8080"), ("unix:/run/a", "unix:/run/a")]
        {
            let short_form = json(&format!("{short:?}")).expect("it is valid");
            let long_form = json(&format!(r#"{{"address": {short:?}}}"#)).expect("it is valid");
            assert_eq!(short_form.address.get().to_string(), address);
            assert_eq!(short_form.address.get(), long_form.address.get());
            assert_eq!(short_form.name(), address);
        }
        assert!(json("true").expect_err("rejected").contains("an address such as"));
    }

    #[test]
    fn any_spelling_of_its_address_refers_to_a_listener_without_a_name() {
        let plain = json(r#"":8080""#).expect("it is valid");
        assert!(plain.is_called(":8080") && plain.is_called("0.0.0.0:8080") && !plain.is_called(":8081"));
        let named = json(r#"{"address": ":8080", "name": "web"}"#).expect("it is valid");
        assert!(named.is_called("web") && !named.is_called(":8080"));
    }
}
