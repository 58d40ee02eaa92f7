//! The configuration as a whole: its fixtures, its schema, and that no text makes it panic.

mod exercise;
mod fixtures;
mod properties;
mod schema;
mod support;
