//! The configuration as a whole: its fixtures, its schema, and that no text makes it panic.

#[cfg(test)]
mod exercise;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod support;
