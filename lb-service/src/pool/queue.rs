//! Requests that wait for a backend with a free place. The queue is bounded and first come, first served.
//!
//! A request that finds every backend full joins the [`Queue`] and asks for a place whenever its turn comes. It stays
//! in the queue while it asks. It leaves by being dropped: because it was placed, because it timed out, or because its
//! client disconnected. A request that arrives while others wait joins behind them, so no request overtakes another.
//!
//! Only the front of the queue gets turns: one when it becomes the front, because a place that became free for the
//! previous front might still be free, and one whenever a place becomes free. If two places become free at once, the
//! front might get only one turn. It takes one place and leaves; the next request becomes the front, gets a turn, and
//! takes the other place. A turn that is given while no task polls is kept, so no turn is lost.
//!
//! [`Line`] is only the order, without locks or tasks. [`Queue`] puts it behind a lock, which is taken only when a
//! request joins, leaves or waits: while the queue is empty, a place that becomes free costs a fence and a load.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use thiserror::Error;

/// Requests that wait for a backend with a free place.
#[derive(Debug)]
pub struct Queue {
    places: AtomicU32,
    /// The length of the line; written under its lock.
    waiting: AtomicU64,
    line: Mutex<Line<Arc<Signal>>>,
}

/// A waiting request. It leaves the queue when this is dropped.
#[derive(Debug)]
pub struct Waiter {
    ticket: Ticket,
    signal: Arc<Signal>,
    queue: Arc<Queue>,
}

/// The turn of one waiting request: a future that completes when the turn is given. [`Waiter::take_turn`] takes it.
///
/// Only the task that polled last is woken.
#[derive(Clone, Debug)]
pub struct Turn(Arc<Signal>);

/// The signal that gives a waiting request its turn.
#[derive(Debug, Default)]
struct Signal {
    is_given: AtomicBool,
    waker: AtomicWaker,
}

/// The error of a queue without a free place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the queue is full")]
pub struct QueueFull;

/// The waiting requests in the order of arrival; `T` is the signal that gives a request its turn.
///
/// Invariant: the change that makes a request the front also gives it its turn.
#[derive(Debug)]
pub(super) struct Line<T> {
    places: usize,
    next: u64,
    /// The requests, ascending by ticket.
    waiting: VecDeque<(Ticket, T)>,
}

/// The number of a waiting request; later arrivals have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

// === impl Queue ===

impl Queue {
    /// Returns an empty queue for at most `places` requests. With 0, no request waits.
    pub fn new(places: u32) -> Arc<Self> {
        Arc::new(Self {
            places: AtomicU32::new(places),
            waiting: AtomicU64::new(0),
            line: Mutex::new(Line::new(places)),
        })
    }

    /// Returns the maximum number of waiting requests.
    pub fn places(&self) -> u32 {
        self.places.load(Ordering::Relaxed)
    }

    /// Changes the maximum number of waiting requests. Requests that already wait stay.
    pub(crate) fn set_places(&self, places: u32) {
        self.line().set_places(places);
        self.places.store(places, Ordering::Relaxed);
    }

    /// Returns the number of waiting requests.
    pub fn len(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns whether no request waits. If one does, a new request joins the queue before it asks for a place.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Joins the end of the queue.
    ///
    /// # Errors
    ///
    /// If the queue is full. This check does not take the lock, so that many rejections do not slow down other
    /// requests.
    pub fn join(self: &Arc<Self>) -> Result<Waiter, QueueFull> {
        if self.len() >= u64::from(self.places()) {
            return Err(QueueFull);
        }
        let signal = Arc::new(Signal::default());
        let mut line = self.line();
        let ticket = line.join(Arc::clone(&signal)).ok_or(QueueFull)?;
        let is_front = line.len() == 1;
        self.publish(&line);
        drop(line);
        if is_front {
            signal.give();
        }
        // Pairs with the fence of `wake`: either the thread that frees a place sees this request, or this request sees
        // the free place.
        fence(Ordering::SeqCst);
        Ok(Waiter { ticket, signal, queue: Arc::clone(self) })
    }

    /// Gives the front of the queue a turn. The caller has freed a place before.
    pub fn wake(&self) {
        if self.places() == 0 && self.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return;
        }
        let front = self.line().front().cloned();
        give_turn(front);
    }

    fn leave(&self, ticket: Ticket) {
        let mut line = self.line();
        let next = line.leave(ticket).cloned();
        self.publish(&line);
        drop(line);
        give_turn(next);
    }

    fn publish(&self, line: &Line<Arc<Signal>>) {
        self.waiting.store(line.len() as u64, Ordering::Relaxed);
    }

    fn line(&self) -> MutexGuard<'_, Line<Arc<Signal>>> {
        // No code that holds the lock can leave the line half changed.
        self.line.lock()
    }
}

/// Gives a turn without holding the lock, because this wakes a task, which is foreign code. If the request has left in
/// the meantime, its leaving gave the turn to the next one.
fn give_turn(waiter: Option<Arc<Signal>>) {
    if let Some(signal) = waiter {
        signal.give();
    }
}

// === impl Waiter ===

impl Waiter {
    /// Returns the turn of this request. The turn comes when the request becomes the front, and then with each
    /// [`Queue::wake`].
    pub fn turn(&self) -> Turn {
        Turn(self.signal.clone())
    }

    /// Returns whether the turn has come since the last call. Several turns that were not taken count once.
    pub fn take_turn(&self) -> bool {
        self.signal.is_given.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.queue.leave(self.ticket);
    }
}

// === impl Turn ===

impl Turn {
    /// Returns whether the turn has come and was not taken.
    pub fn is_given(&self) -> bool {
        self.0.is_given.load(Ordering::Acquire)
    }
}

impl Future for Turn {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(cx.waker());
        if self.is_given() { Poll::Ready(()) } else { Poll::Pending }
    }
}

// === impl Signal ===

impl Signal {
    fn give(&self) {
        // A swap continues the release sequence of an earlier turn that was not taken, so that the request also sees
        // the places that were free then. A store would end it.
        self.is_given.swap(true, Ordering::AcqRel);
        self.waker.wake();
    }
}

// === impl Line ===

impl<T> Line<T> {
    /// Returns an empty line for at most `places` requests.
    pub(super) fn new(places: u32) -> Self {
        Self { places: usize::try_from(places).unwrap_or(usize::MAX), next: 0, waiting: VecDeque::new() }
    }

    /// Changes the maximum length.
    pub(crate) fn set_places(&mut self, places: u32) {
        self.places = usize::try_from(places).unwrap_or(usize::MAX);
    }

    /// Joins the end of the line; `None` if it is full. A request that is alone is the front, and the caller gives it a
    /// turn.
    pub(super) fn join(&mut self, signal: T) -> Option<Ticket> {
        if self.waiting.len() >= self.places {
            return None;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back((ticket, signal));
        Some(ticket)
    }

    /// Removes a request from any position. Returns the request that became the front by this, to which the caller
    /// gives a turn.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<&T> {
        let place = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        self.waiting.remove(place);
        if place == 0 { self.front() } else { None }
    }

    /// Returns the front, which gets a turn when a place becomes free.
    pub(super) fn front(&self) -> Option<&T> {
        self.waiting.front().map(|(_, signal)| signal)
    }

    /// Returns the length.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use std::collections::HashSet;
    use std::sync::atomic::AtomicI64;
    use std::time::Duration;
    use tokio::task::JoinSet;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A backend with a number of free places, and the queue in front of it.
    struct Server {
        free: AtomicI64,
        queue: Arc<Queue>,
    }

    impl Server {
        fn new(free: i64, places: u32) -> Arc<Self> {
            Arc::new(Self { free: AtomicI64::new(free), queue: Queue::new(places) })
        }

        fn try_take(&self) -> bool {
            let take = |free: i64| (free > 0).then_some(free - 1);
            self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        }

        fn release(&self) {
            self.free.fetch_add(1, Ordering::Relaxed);
            self.queue.wake();
        }

        async fn take_in_turn(&self, waiter: &mut Waiter) {
            loop {
                waiter.turn().await;
                if waiter.take_turn() && self.try_take() {
                    return;
                }
            }
        }
    }

    fn has_turn(waiter: &mut Waiter) -> bool {
        waiter.take_turn()
    }

    #[test]
    fn the_front_has_a_turn_at_once_and_then_one_after_each_wake() {
        let queue = Queue::new(2);
        let mut front = queue.join().unwrap();
        assert!(has_turn(&mut front) && !has_turn(&mut front));
        queue.wake();
        queue.wake();
        assert!(has_turn(&mut front) && !has_turn(&mut front), "two turns that were not taken count once");
    }

    #[test]
    fn only_the_front_gets_a_turn() {
        let queue = Queue::new(2);
        let (mut front, mut second) = (queue.join().unwrap(), queue.join().unwrap());
        queue.wake();
        assert!(has_turn(&mut front) && !has_turn(&mut second));
        drop(front);
        assert!(
            has_turn(&mut second) && !has_turn(&mut second),
            "the leaving request gives a turn to the next one"
        );
    }

    #[test]
    fn a_turn_that_is_given_while_no_task_polls_is_kept() {
        let queue = Queue::new(1);
        let mut front = queue.join().unwrap();
        assert!(has_turn(&mut front));
        {
            let mut listening = Box::pin(front.turn());
            assert!(listening.as_mut().now_or_never().is_none());
            queue.wake();
        }
        assert!(has_turn(&mut front), "a turn is kept when its future is dropped before it is polled");
    }

    #[test]
    fn a_full_queue_takes_no_request_until_one_leaves() {
        let queue = Queue::new(3);
        let mut waiters: Vec<_> = (0..3).map(|_| queue.join().unwrap()).collect();
        assert_eq!(queue.join().unwrap_err(), QueueFull);
        assert_eq!((queue.len(), queue.places()), (3, 3));
        drop(waiters.remove(1));
        assert_eq!(queue.len(), 2, "its place is free at once");
        waiters.push(queue.join().unwrap());
        assert!(queue.join().is_err());
        for place in 0..3 {
            assert!(has_turn(&mut waiters[0]), "{place}");
            assert!(waiters[1..].iter_mut().all(|waiter| !has_turn(waiter)));
            waiters.remove(0);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn no_request_waits_in_a_queue_without_places() {
        let queue = Queue::new(0);
        assert!(queue.join().is_err());
        queue.wake();
        assert!(queue.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_waiters_are_served_in_order() {
        let server = Server::new(0, 100);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..100).map(|_| server.queue.join().unwrap()).collect();
        let serve = |(number, mut waiter): (usize, Waiter)| {
            let (server, order) = (server.clone(), order.clone());
            async move {
                server.take_in_turn(&mut waiter).await;
                order.lock().push(number);
                drop(waiter);
                server.release();
            }
        };
        let tasks: JoinSet<_> = waiters.into_iter().enumerate().map(serve).collect();
        server.release();
        server.release();
        assert!(tokio::time::timeout(DEADLINE, tasks.join_all()).await.is_ok(), "{:?}", server.queue);
        assert_eq!(*order.lock(), (0..100).collect::<Vec<_>>());
        assert_eq!(server.free.load(Ordering::Relaxed), 2);
    }

    /// Runs one request of the stress test; every fifth request gives up after some polls.
    async fn request(server: &Server, number: usize) {
        if !(server.queue.is_empty() && server.try_take()) {
            let Ok(mut waiter) = server.queue.join() else { return };
            let time_limit = async {
                for _ in 0..number % 40 {
                    tokio::task::yield_now().await;
                }
                if !number.is_multiple_of(5) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = server.take_in_turn(&mut waiter) => {}
                () = time_limit => return,
            }
        }
        if number.is_multiple_of(3) {
            tokio::task::yield_now().await;
        }
        server.release();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_is_lost_under_stress() {
        let server = Server::new(2, 1000);
        let client = |client: usize| {
            let server = server.clone();
            async move {
                for turn in 0..2000 {
                    request(&server, client * 7 + turn).await;
                }
            }
        };
        let all = (0..16).map(client).collect::<JoinSet<_>>().join_all();
        assert!(
            tokio::time::timeout(DEADLINE, all).await.is_ok(),
            "a request waits forever: {:?}",
            server.queue
        );
        assert!(server.queue.is_empty());
        assert_eq!(server.free.load(Ordering::Relaxed), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join,
        Leave(usize),
        Wake,
        /// The front polls, which uses up its turn.
        Listen,
    }

    fn step() -> impl Strategy<Value = Step> {
        use proptest::prelude::Just;
        prop_oneof![
            3 => Just(Step::Join),
            2 => any::<usize>().prop_map(Step::Leave),
            1 => Just(Step::Leave(0)),
            1 => Just(Step::Wake),
            2 => Just(Step::Listen),
        ]
    }

    proptest! {
        #[test]
        fn the_line_is_first_come_first_served(places in 0u32..8, steps in vec(step(), 0..200)) {
            let mut line = Line::new(places);
            let mut model: VecDeque<(Ticket, usize)> = VecDeque::new();
            let mut turns = HashSet::new();
            for (name, step) in steps.into_iter().enumerate() {
                let before = model.front().copied();
                let mut must_have_turn = false;
                match step {
                    Step::Join => {
                        let ticket = line.join(name);
                        prop_assert_eq!(ticket.is_some(), model.len() < places as usize);
                        if line.len() == 1 && ticket.is_some() {
                            turns.insert(name);
                        }
                        model.extend(ticket.map(|ticket| (ticket, name)));
                    }
                    Step::Leave(place) if !model.is_empty() => {
                        let (ticket, _) = model.remove(place % model.len()).unwrap();
                        let next = line.leave(ticket).copied();
                        let new_front = model.front().filter(|front| before.is_some_and(|b| b < **front));
                        prop_assert_eq!(next, new_front.map(|(_, name)| *name), "the request that gets a turn");
                        turns.extend(next);
                        prop_assert_eq!(line.leave(ticket), None, "a request leaves only once");
                    }
                    Step::Wake => {
                        turns.extend(line.front().copied());
                        must_have_turn = true;
                    }
                    Step::Listen => {
                        before.map(|(_, front)| turns.remove(&front));
                    }
                    Step::Leave(_) => {}
                }
                let front = model.front().copied();
                prop_assert_eq!(line.front().copied(), front.map(|(_, name)| name));
                prop_assert_eq!(line.len(), model.len());
                prop_assert!(line.len() <= places as usize);
                if let Some((_, front)) = front.filter(|_| must_have_turn || front != before) {
                    prop_assert!(turns.contains(&front), "the front did not get a turn");
                }
                let waits = |name: &usize| model.iter().skip(1).any(|(_, waiting)| waiting == name);
                prop_assert!(!turns.iter().any(waits), "a request that is not the front got a turn");
            }
        }
    }
}
