//! A listener, in its short form (an address) and its long form (a mapping).

use std::borrow::Cow;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::number::MAX_COUNT;
use values::{Name, Number, PositiveDuration, Scalar, Size, SocketMode, Text};

use crate::listener::{ClientLimits, ClientTimeouts, HeadLimits, ListenAddress, Listener, UNIX_SOCKET_MODE};

/// An address that clients connect to.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The address to listen on.
    pub address: Text<ListenAddress>,
    /// The name in routes, metrics and the access log. `None` means the address.
    pub name: Option<Text<Name>>,
    /// The permissions of the file of a Unix socket. `None` means the default, or a TCP port.
    pub mode: Option<Text<SocketMode>>,
    /// The limits for its clients.
    pub limits: ClientLimitsConfig,
    /// The deadlines for its clients.
    pub timeouts: ClientTimeoutsConfig,
    /// The lowest average speed of its clients, per second.
    pub min_rate: Text<Rate>,
}

/// Limits for the clients of a listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientLimitsConfig {
    /// The connections at a time; 0: no limit. At the limit, further clients wait until a connection ends.
    pub connections: Number<0, MAX_COUNT>,
    /// The size of the head of a request: the request line and the fields together. A larger one is rejected with 431.
    pub head: Text<Size<1024, MAX_HEAD>>,
    /// The number of fields of a request. A request with more is rejected with 431.
    pub fields: Number<8, 1024>,
    /// The size of the target in the request line. A longer one is rejected with 414.
    pub target: Text<Size<256, MAX_HEAD>>,
    /// The size of the body of a request; 0: no limit. A larger one is rejected with 413.
    pub body: Text<Size<0, MAX_BODY>>,
    /// The requests on one connection; 0: no limit. The response to the last one closes the connection.
    pub requests: Number<0, MAX_COUNT>,
}

/// Deadlines for the clients of a listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTimeoutsConfig {
    /// The time until a request begins, including the first one on a connection. Then the connection is closed.
    pub idle: Text<PositiveDuration>,
    /// The time from the first byte of a request to the end of its head. Then the response is 408.
    pub head: Text<PositiveDuration>,
    /// The longest pause while the client sends the body of a request or reads a response. Then the response is 408, or
    /// the connection is closed.
    pub body: Text<PositiveDuration>,
}

/// The size of a head that is allowed at most.
const MAX_HEAD: u64 = 1 << 20;
/// The limit of a body that can be set at most.
const MAX_BODY: u64 = 1 << 40;

/// The bytes that a client moves in a second.
type Rate = Size<0, { 1 << 30 }>;

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
    /// The permissions of the file of a Unix socket, as octal digits in quotes. A client needs write permission to
    /// connect, and access to the directory. Default: `"0666"`, any user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<Text<SocketMode>>,
    /// The limits for its clients.
    #[serde(default)]
    limits: ClientLimitsConfig,
    /// The deadlines for its clients.
    #[serde(default)]
    timeouts: ClientTimeoutsConfig,
    /// The lowest average speed, per second, at which a client sends the body of a request or reads a response. It
    /// counts after 10 s, and only the time in which the daemon waits for the client. 0: any speed.
    #[serde(default = "min_rate")]
    min_rate: Text<Rate>,
}

// === impl ListenerConfig ===

impl ListenerConfig {
    /// Returns a listener at this address, with defaults for everything else.
    pub fn at(address: Text<ListenAddress>) -> Self {
        let (limits, timeouts) = (ClientLimitsConfig::default(), ClientTimeoutsConfig::default());
        Self { address, name: None, mode: None, limits, timeouts, min_rate: min_rate() }
    }

    /// Returns the name in routes, metrics and the access log.
    pub fn name(&self) -> String {
        self.name.as_ref().map_or_else(|| self.address.get().to_string(), |name| name.written().to_owned())
    }

    /// Fills in the default mode of a Unix socket.
    pub fn complete(&mut self) {
        if matches!(self.address.get(), ListenAddress::Unix(_)) {
            self.mode.get_or_insert_with(|| Text::literal(&format!("{UNIX_SOCKET_MODE:04o}")));
        }
    }

    /// Returns the settings.
    pub fn plan(&self) -> Listener {
        let min_rate = self.min_rate.get().get();
        Listener {
            name: self.name().into(),
            address: self.address.get().clone(),
            mode: self.mode.as_ref().map_or(UNIX_SOCKET_MODE, |mode| mode.get().get()),
            limits: self.limits.plan(min_rate),
            timeouts: self.timeouts.plan(),
        }
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
        let ListenerMapping { address, name, mode, limits, timeouts, min_rate } = mapping;
        Self { address, name, mode, limits, timeouts, min_rate }
    }
}

impl<'de> Deserialize<'de> for ListenerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListenerVisitor)
    }
}

impl Serialize for ListenerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { address, name, mode, limits, timeouts, min_rate } = self.clone();
        ListenerMapping { address, name, mode, limits, timeouts, min_rate }.serialize(serializer)
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

fn min_rate() -> Text<Rate> {
    Text::size(ClientLimits::default().min_rate)
}

// === impl ClientLimitsConfig ===

impl ClientLimitsConfig {
    fn plan(&self, min_rate: u64) -> ClientLimits {
        ClientLimits {
            connections: NonZeroU32::new(self.connections.get()),
            head: HeadLimits {
                head: self.head.get().as_usize(),
                fields: self.fields.as_usize(),
                target: self.target.get().as_usize(),
            },
            body: NonZeroU64::new(self.body.get().get()),
            requests: NonZeroU32::new(self.requests.get()),
            min_rate,
        }
    }
}

impl Default for ClientLimitsConfig {
    #[expect(clippy::expect_used, reason = "the default is a constant")]
    fn default() -> Self {
        let ClientLimits { head: HeadLimits { head, fields, target }, .. } = ClientLimits::default();
        Self {
            connections: Number::near(0),
            head: Text::size(head as u64),
            fields: Number::near(u32::try_from(fields).expect("the default is small")),
            target: Text::size(target as u64),
            body: Text::size(0),
            requests: Number::near(0),
        }
    }
}

// === impl ClientTimeoutsConfig ===

impl ClientTimeoutsConfig {
    fn plan(&self) -> ClientTimeouts {
        let Self { idle, head, body } = self;
        ClientTimeouts { idle: idle.duration(), head: head.duration(), body: body.duration() }
    }
}

impl Default for ClientTimeoutsConfig {
    fn default() -> Self {
        let ClientTimeouts { idle, head, body } = ClientTimeouts::default();
        Self { idle: Text::of(idle), head: Text::of(head), body: Text::of(body) }
    }
}

struct ListenerVisitor;

impl<'de> Visitor<'de> for ListenerVisitor {
    type Value = ListenerConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 0.0.0.0:6188, or {address: 0.0.0.0:6188, name: web}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenerConfig, E> {
        Text::new(text).map(ListenerConfig::at).map_err(E::custom)
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
    fn the_mode_is_that_of_a_unix_socket() {
        let complete = |text: &str| {
            let mut listener = json(text).expect("it is valid");
            listener.complete();
            (listener.mode.as_ref().map(ToString::to_string), listener.plan().mode)
        };
        assert_eq!(complete(r#""unix:/run/a""#), (Some("0666".to_owned()), 0o666));
        let given = complete(r#"{"address": "unix:/run/a", "mode": "0600"}"#);
        assert_eq!(given, (Some("0600".to_owned()), 0o600));
        assert_eq!(complete(r#"":80""#).0, None);
    }

    #[test]
    fn any_spelling_of_its_address_refers_to_a_listener_without_a_name() {
        let plain = json(r#"":8080""#).expect("it is valid");
        assert!(plain.is_called(":8080") && plain.is_called("0.0.0.0:8080") && !plain.is_called(":8081"));
        let named = json(r#"{"address": ":8080", "name": "web"}"#).expect("it is valid");
        assert!(named.is_called("web") && !named.is_called(":8080"));
    }
}
