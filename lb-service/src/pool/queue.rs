//! Requests that wait for a backend with a free place: first come, first served, and not more than fit.
//!
//! A request that finds every backend full joins the [`Queue`] and tries again whenever it is told to. It
//! stays in the line while it tries and leaves by being dropped: because it was placed, because it waited too
//! long, or because its client went away. So an arrival that sees a line joins it, and nobody is overtaken.
//!
//! Only the front of the line is ever told to try. It is told when it becomes the front, because a place may
//! have become free for the one before it, and whenever a place becomes free. If two places become free at
//! once the front may be told once only; it takes one, leaves, and the next, told because it is the front
//! now, takes the other. What is told while nobody listens is kept, so none of it is lost.
//!
//! [`Line`] is the order alone, without locks or tasks. [`Queue`] puts it behind a lock, which is taken only
//! when somebody joins, leaves or waits: while the line is empty, a place that becomes free costs a fence and
//! a load.

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
    /// As many as are in the line; written under its lock.
    waiting: AtomicU64,
    line: Mutex<Line<Arc<Signal>>>,
}

/// A request in the line, until this is dropped.
#[derive(Debug)]
pub struct Waiter {
    ticket: Ticket,
    told: Arc<Signal>,
    queue: Arc<Queue>,
}

/// The turn of one waiting request: a future that completes when the turn is given. [`Waiter::take_turn`] takes it.
///
/// Only the task that polled last is woken.
#[derive(Clone, Debug)]
pub struct Turn(Arc<Signal>);

/// Gives a waiting request its turn.
#[derive(Debug, Default)]
struct Signal {
    is_given: AtomicBool,
    waker: AtomicWaker,
}

/// The queue holds as many requests as it has places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the queue is full")]
pub struct QueueFull;

/// Who waits, in the order of arrival; `T` is how one of them is told that it is its turn.
///
/// Invariant: whoever is the front was told when it became the front, by whoever made the change.
#[derive(Debug)]
pub struct Line<T> {
    places: usize,
    next: u64,
    /// Ascending by ticket.
    waiting: VecDeque<(Ticket, T)>,
}

/// The number of one who waits; later arrivals have higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

// === impl Queue ===

impl Queue {
    /// An empty line for at most `places` requests. With 0 nobody ever waits.
    pub fn new(places: u32) -> Arc<Self> {
        Arc::new(Self {
            places: AtomicU32::new(places),
            waiting: AtomicU64::new(0),
            line: Mutex::new(Line::new(places)),
        })
    }

    /// How many requests may wait.
    pub fn places(&self) -> u32 {
        self.places.load(Ordering::Relaxed)
    }

    /// From now on so many may wait. Who waits already stays.
    pub fn set_places(&self, places: u32) {
        self.line().set_places(places);
        self.places.store(places, Ordering::Relaxed);
    }

    /// How many requests wait.
    pub fn len(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether no request waits; an arrival that finds one waiting joins the line before it tries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Goes to the end of the line.
    ///
    /// # Errors
    ///
    /// When as many requests wait as may. That is found without the lock, so that a flood of refusals hinders
    /// nobody.
    pub fn join(self: &Arc<Self>) -> Result<Waiter, QueueFull> {
        if self.len() >= u64::from(self.places()) {
            return Err(QueueFull);
        }
        let told = Arc::new(Signal::default());
        let mut line = self.line();
        let ticket = line.join(Arc::clone(&told)).ok_or(QueueFull)?;
        let is_front = line.len() == 1;
        self.publish(&line);
        drop(line);
        if is_front {
            told.give();
        }
        // Pairs with the fence of `wake`: either the one who frees a place sees us waiting, or we see the
        // free place.
        fence(Ordering::SeqCst);
        Ok(Waiter { ticket, told, queue: Arc::clone(self) })
    }

    /// Tells the front of the line that a place may be free. To be called after a place became free.
    pub fn wake(&self) {
        if self.places() == 0 && self.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return;
        }
        let front = self.line().front().cloned();
        tell(front);
    }

    fn leave(&self, ticket: Ticket) {
        let mut line = self.line();
        let next = line.leave(ticket).cloned();
        self.publish(&line);
        drop(line);
        tell(next);
    }

    fn publish(&self, line: &Line<Arc<Signal>>) {
        self.waiting.store(line.len() as u64, Ordering::Relaxed);
    }

    fn line(&self) -> MutexGuard<'_, Line<Arc<Signal>>> {
        // No code that holds the lock can leave the line half changed.
        self.line.lock()
    }
}

/// Without the lock: this wakes a task, which is foreign code. Should the one who is told have left
/// meanwhile, then its leaving told the next.
fn tell(waiter: Option<Arc<Signal>>) {
    if let Some(told) = waiter {
        told.give();
    }
}

// === impl Waiter ===

impl Waiter {
    /// The turn of this request. It comes when the request becomes the front, and then with each [`Queue::wake`].
    pub fn turn(&self) -> Turn {
        Turn(self.told.clone())
    }

    /// Whether its turn has come since this was last called. Turns that were not taken count once.
    pub fn take_turn(&self) -> bool {
        self.told.is_given.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.queue.leave(self.ticket);
    }
}

// === impl Turn ===

impl Turn {
    /// Whether it has come and was not taken.
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
        self.is_given.store(true, Ordering::Release);
        self.waker.wake();
    }
}

// === impl Line ===

impl<T> Line<T> {
    /// An empty line for at most `places`.
    pub fn new(places: u32) -> Self {
        Self { places: usize::try_from(places).unwrap_or(usize::MAX), next: 0, waiting: VecDeque::new() }
    }

    /// From now on at most so many join.
    pub fn set_places(&mut self, places: u32) {
        self.places = usize::try_from(places).unwrap_or(usize::MAX);
    }

    /// Goes to the end; `None` when the line is full. Who is alone in the line is its front and is to be
    /// told.
    pub fn join(&mut self, told: T) -> Option<Ticket> {
        if self.waiting.len() >= self.places {
            return None;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back((ticket, told));
        Some(ticket)
    }

    /// Takes one out, wherever it stands. Returns who became the front by that and is to be told.
    pub fn leave(&mut self, ticket: Ticket) -> Option<&T> {
        let place = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        self.waiting.remove(place);
        if place == 0 { self.front() } else { None }
    }

    /// Who is first, and is to be told when a place becomes free.
    pub fn front(&self) -> Option<&T> {
        self.waiting.front().map(|(_, told)| told)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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

    /// A backend with so many free places, and the line before it.
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
        assert!(has_turn(&mut front) && !has_turn(&mut front), "two that nobody listened to count once");
    }

    #[test]
    fn only_the_front_is_told() {
        let queue = Queue::new(2);
        let (mut front, mut second) = (queue.join().unwrap(), queue.join().unwrap());
        queue.wake();
        assert!(has_turn(&mut front) && !has_turn(&mut second));
        drop(front);
        assert!(has_turn(&mut second) && !has_turn(&mut second), "the next is told by the one who leaves");
    }

    #[test]
    fn a_turn_that_is_given_while_nobody_listens_is_kept() {
        let queue = Queue::new(1);
        let mut front = queue.join().unwrap();
        assert!(has_turn(&mut front));
        {
            let mut listening = Box::pin(front.turn());
            assert!(listening.as_mut().now_or_never().is_none());
            queue.wake();
        }
        assert!(has_turn(&mut front), "who was told and stopped listening before it heard is told again");
    }

    #[test]
    fn a_full_line_takes_nobody_until_somebody_leaves() {
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
    fn nobody_waits_in_a_line_without_places() {
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

    /// One request of the stress test; every fifth gives up after some polls.
    async fn request(server: &Server, number: usize) {
        if !(server.queue.is_empty() && server.try_take()) {
            let Ok(mut waiter) = server.queue.join() else { return };
            let patience = async {
                for _ in 0..number % 40 {
                    tokio::task::yield_now().await;
                }
                if !number.is_multiple_of(5) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = server.take_in_turn(&mut waiter) => {}
                () = patience => return,
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
            "somebody waits for ever: {:?}",
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
        /// The front listens, which uses up its turn.
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
                        let told = line.leave(ticket).copied();
                        let new_front = model.front().filter(|front| before.is_some_and(|b| b < **front));
                        prop_assert_eq!(told, new_front.map(|(_, name)| *name), "who is to be told");
                        turns.extend(told);
                        prop_assert_eq!(line.leave(ticket), None, "who has left does not leave again");
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
                prop_assert_eq!(line.is_empty(), model.is_empty());
                prop_assert!(line.len() <= places as usize);
                if let Some((_, front)) = front.filter(|_| must_have_turn || front != before) {
                    prop_assert!(turns.contains(&front), "the front was not told");
                }
                let waits = |name: &usize| model.iter().skip(1).any(|(_, waiting)| waiting == name);
                prop_assert!(!turns.iter().any(waits), "somebody was told who is not the front");
            }
        }
    }
}
