//! A new connection for a request, to the backend of its attempt or to the one that is connected first.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures::future::{Either, select};

use super::super::upstream::{ConnectError, Connecting, Connector, Upstream};
use super::story::{Story, Surroundings};
use crate::pool::{Backend, Contestant, Loser, RuntimeId};

/// Connects to the backend. If that takes too long, another backend may be connected first, and takes its place.
///
/// # Errors
///
/// If no backend can be reached in time. The attempt of the story is the last one that failed.
pub(super) async fn connect(
    story: &mut Story,
    around: Surroundings<'_>,
    backend: &mut Arc<Backend>,
) -> Result<Box<Upstream>, ConnectError> {
    let mut first = around.connector.connect(backend);
    let Some(pause) = story.exchange.race_after() else { return first.finish().await };
    if let Some(connected) = first.within(pause).await {
        return connected;
    }
    let Some(second) = story.race() else { return first.finish().await };
    let connected = race(story, around, first, &second).await;
    story.current(backend);
    connected
}

/// Connects to a second backend as well, and uses the connection that is ready first.
async fn race(
    story: &mut Story,
    around: Surroundings<'_>,
    mut first: Connecting,
    backend: &Arc<Backend>,
) -> Result<Box<Upstream>, ConnectError> {
    if let Some(upstream) = story.idle(around, backend) {
        overtake(story, around, Contestant::Second, first);
        return Ok(upstream);
    }
    let mut second = around.connector.connect(backend);
    let (who, connected) = match select(pin!(first.finish()), pin!(second.finish())).await {
        Either::Left((connected, _)) => (Contestant::First, connected),
        Either::Right((connected, _)) => (Contestant::Second, connected),
    };
    let mut other = if who == Contestant::First { second } else { first };
    match connected {
        Ok(upstream) => {
            overtake(story, around, who, other);
            Ok(upstream)
        }
        Err(error) => {
            log::debug!("a connection that was raced failed: {}", error.reason);
            story.exchange.drop_out(who, error.kind, error.in_words(), Instant::now());
            other.finish().await
        }
    }
}

/// Ends the race, and lets the other attempt go on in the background.
fn overtake(story: &mut Story, around: Surroundings<'_>, winner: Contestant, other: Connecting) {
    if let Some(loser) = story.exchange.win_race(winner, Instant::now()) {
        tokio::spawn(go_on(loser, other, around.connector.clone(), around.runtime));
    }
}

/// Keeps the connection for a later request, or records the failure.
async fn go_on(loser: Loser, mut connecting: Connecting, connector: Connector, runtime: RuntimeId) {
    match connecting.finish().await {
        Ok(upstream) => connector.keep(upstream, &loser.backend, runtime, Instant::now()),
        Err(error) => {
            log::debug!("cannot connect to {}: {}", loser.backend.label, error.reason);
            loser.failed(error.kind.of_backend(), Instant::now());
        }
    }
}
