//! Tests of the configuration as a whole: fixtures, hints, the schema, and the absence of panics.

#[cfg(test)]
mod exercise;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod guide;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod support;
