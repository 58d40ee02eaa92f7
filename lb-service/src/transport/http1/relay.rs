//! One attempt: bytes in both directions between a client and a backend.
//!
//! Nothing here is dropped halfway: each direction keeps what the other side has not taken yet, so a step can be
//! interrupted at any time. Both directions flow at the same time, because a backend may respond before the request
//! has ended.

use std::io;
use std::num::NonZeroUsize;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::splice;
use super::super::stream::Peer as _;
use super::super::upstream::Upstream;
use super::client::{Client, LOOK, fault};
use super::request_body::{Piece, Place, RequestBody};
use crate::exchange::{Direction, Fault, FaultKind, Side, Wait};
use crate::wire::body::{BodyReader, BodyWriter};
use crate::wire::chunked::Step;
use crate::wire::connection::Named;
use crate::wire::fields::FieldLines;
use crate::wire::response::{LIMITS, ResponseHead};
use crate::wire::scan::{Found, Scan};
use crate::wire::write;

/// The time limits of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest pause of the client while it sends or reads a body.
    pub(super) client: Duration,
    /// The lowest average speed of the client, in bytes per second; 0 means any.
    pub(super) min_rate: u64,
    /// The longest pause of the backend while it reads the request.
    pub(super) backend: Duration,
    /// The longest pause of either side in the body of the request after the head of the response was passed on, when
    /// both bodies may be streams; `None` means no limit.
    pub(super) stream: Option<Duration>,
    /// Whether the client sends the body only when the backend asks for it.
    pub(super) holds_body: bool,
}

/// One attempt at a backend.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    pub(super) client: &'a mut Client,
    pub(super) upstream: &'a mut Upstream,
    pub(super) body: &'a mut RequestBody,
    limits: Limits,
    upload: Upload,
    scan: Scan,
    /// Whether a byte of the response has arrived.
    response_read: bool,
    /// The latest time for the head of the response; `None` while the request is on its way.
    respond_by: Option<Instant>,
    /// The next look at connections on which no event may happen.
    look_at: Instant,
    /// The message of TLS about a connection that it ended after the handshake, for example because the backend demands
    /// a certificate.
    pub(super) tls_error: Option<String>,
}

/// The request on its way to the backend.
#[derive(Debug)]
struct Upload {
    writer: BodyWriter,
    named: Named,
    place: Place,
    state: UploadState,
    /// Whether the backend's socket has everything that has arrived.
    is_flushed: bool,
    /// The writes that the backend has taken.
    writes: u64,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadState {
    /// Parts of the body have not arrived.
    Reading,
    /// Everything has arrived, and the backend has not taken all of it.
    Writing,
    /// The backend has taken everything.
    Done,
    /// The backend takes nothing more.
    Broken,
}

/// The body of the response on its way to the client.
#[derive(Debug)]
pub(super) struct Download {
    reader: BodyReader,
    writer: BodyWriter,
    named: Named,
    /// The longest pause of the backend; `None` means no limit.
    pause: Option<Duration>,
    is_done: bool,
    /// The reads and writes so far.
    steps: u64,
    /// The bytes that the client has taken.
    taken: u64,
    direction: Direction,
    /// The bytes of the body that were queued for the client.
    bytes: u64,
    /// Whether a large rest of the body may pass through a pipe.
    may_splice: bool,
}

/// What happened while the relay waited for the head of the response.
#[derive(Debug)]
pub(super) enum Event {
    /// The backend has taken the whole request.
    RequestComplete,
    /// A head has arrived.
    Head(ResponseHead),
}

/// The time for which a response is awaited after the backend has stopped to take the request. Servers that reject a
/// body respond and close.
const LAST_WORDS: Duration = Duration::from_secs(1);

// === impl Limits ===

impl Limits {
    fn pause_between_looks(&self) -> Duration {
        LOOK.min(self.client).min(self.backend)
    }
}

// === impl Relay ===

impl<'a> Relay<'a> {
    /// Begins an attempt at this time. The head of the request is in the output of `upstream`, and `named` has the
    /// fields that it names in `Connection`.
    pub(super) fn new(
        client: &'a mut Client,
        upstream: &'a mut Upstream,
        body: &'a mut RequestBody,
        writer: BodyWriter,
        named: Named,
        limits: Limits,
        now: Instant,
    ) -> Self {
        let (place, direction) = (Place::default(), Direction::new(now));
        let upload = Upload {
            writer,
            named,
            place,
            state: UploadState::Reading,
            is_flushed: false,
            writes: 0,
            direction,
        };
        let (scan, response_read, respond_by) = (Scan::default(), false, None);
        let look_at = now + limits.pause_between_looks();
        Self {
            client,
            upstream,
            body,
            limits,
            upload,
            scan,
            response_read,
            respond_by,
            look_at,
            tls_error: None,
        }
    }

    /// Sends the request, and waits for the next head of the response.
    ///
    /// # Errors
    ///
    /// If one of the two sides fails.
    pub(super) async fn next_event(&mut self) -> Result<Event, Fault> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Allows this time until the head of the response.
    pub(super) fn await_response(&mut self, limit: Duration) {
        self.respond_by = Some(Instant::now() + limit);
    }

    /// Records that the backend has asked for the body.
    pub(super) fn continued(&mut self) {
        self.limits.holds_body = false;
    }

    /// Returns the fault of a backend whose response does not follow the grammar.
    pub(super) fn bad_response(&self) -> Fault {
        self.backend_fault(FaultKind::Protocol)
    }

    /// Returns whether the whole request was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.upload.state == UploadState::Done
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Fault>> {
        let was_sent = self.is_sent();
        if self.poll_upload(cx)?.is_ready() && self.is_sent() && !was_sent {
            return Poll::Ready(Ok(Event::RequestComplete));
        }
        if let Poll::Ready(head) = self.poll_head(cx) {
            return Poll::Ready(head.map(Event::Head));
        }
        self.poll_informational(cx)?;
        // While the body is read, its reader notices that the client leaves.
        if !self.reads_body() && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(self.body.gone(self.client)));
        }
        self.poll_deadline(None, cx).map(Err)
    }

    /// Is ready when a side has taken too long, or the client has left unnoticed. `download` is the response, once its
    /// head was passed on.
    fn poll_deadline(&mut self, mut download: Option<&mut Download>, cx: &mut Context<'_>) -> Poll<Fault> {
        let now = Instant::now();
        let is_stuck = self.is_stuck();
        if is_stuck && now >= self.look_at && self.look(download.as_deref_mut(), now, cx) {
            return Poll::Ready(fault(FaultKind::Closed));
        }
        let deadline = self.deadline(download, now);
        let look_at = is_stuck.then_some(self.look_at);
        let Some(at) = deadline.iter().map(|(at, _)| *at).chain(look_at).min() else { return Poll::Pending };
        self.client.timer.set_at(at);
        ready!(self.client.timer.poll_expired(cx));
        match deadline {
            Some((at, fault)) if at <= now => Poll::Ready(fault),
            // Time has passed since `now`, so a look or the deadline is due at the next poll.
            _ => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Returns whether no event might report what a peer does. No event reports a reset by a client whose bytes wait in
    /// the system, or which has sent its last byte. Room for a write is reported only when a third of the system's
    /// buffer is free, which can be megabytes, so a peer that reads steadily can seem to read nothing for minutes.
    fn is_stuck(&self) -> bool {
        let is_uploading = matches!(self.upload.state, UploadState::Reading | UploadState::Writing);
        let is_unsent = is_uploading && !self.upload.is_flushed;
        self.client.is_unwatched() || !self.client.output.is_empty() || is_unsent
    }

    /// Writes what the peers take now, although no event has reported room. Returns whether the client has left.
    fn look(&mut self, download: Option<&mut Download>, now: Instant, cx: &Context<'_>) -> bool {
        self.look_at = now + self.limits.pause_between_looks();
        if self.client.is_unwatched() && self.client.stream.take_error() {
            return true;
        }
        let to_client = self.client.output.write_now(&mut self.client.stream);
        let to_backend = self.upstream.output.write_now(&mut self.upstream.stream);
        if let Some(download) = download.filter(|_| to_client > 0) {
            download.took(to_client);
        }
        self.upload.writes += u64::from(to_backend > 0);
        if to_client + to_backend > 0 {
            // The next step may depend on what was written.
            cx.waker().wake_by_ref();
        }
        false
    }

    /// Returns the earliest time at which a side takes too long, and the fault that it then is.
    fn deadline(&mut self, download: Option<&mut Download>, now: Instant) -> Option<(Instant, Fault)> {
        let is_stream = download.is_some();
        let progress = self.body.read + self.upload.writes;
        // A response that has arrived is not given up for the rest of a request.
        let is_over = download.as_ref().is_some_and(|download| download.is_done);
        let wait = self.upload_wait(is_stream).filter(|_| !is_over);
        self.upload.direction.update(wait, progress, self.body.read, now);
        let upload =
            self.upload.direction.deadline().map(|(at, side)| (at, self.upload_fault(side, is_stream)));
        let response = match download {
            Some(download) => {
                let wait = self.download_wait(download);
                download.direction.update(wait, download.steps, download.taken, now);
                download.direction.deadline().map(|(at, side)| (at, self.download_fault(side)))
            }
            None => self.respond_by.map(|at| (at, self.late_response())),
        };
        [upload, response].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn upload_wait(&self, is_stream: bool) -> Option<Wait> {
        let Limits { client, min_rate, backend, stream, holds_body } = self.limits;
        let of_client = |pause, min_rate| Wait { side: Side::Client, pause, min_rate };
        match self.upload.state {
            UploadState::Done | UploadState::Broken => None,
            UploadState::Reading if self.upload.is_flushed => Some(match is_stream {
                true => of_client(stream, 0),
                // The client may wait until the backend asks for the body, or decide not to send it.
                false if holds_body && self.body.read == 0 => of_client(Some(client.min(backend)), 0),
                false => of_client(Some(client), min_rate),
            }),
            UploadState::Reading | UploadState::Writing => {
                let pause = if is_stream { stream } else { Some(backend) };
                Some(Wait { side: Side::Backend, pause, min_rate: 0 })
            }
        }
    }

    fn upload_fault(&self, side: Side, is_stream: bool) -> Fault {
        match side {
            Side::Client => fault(FaultKind::ReadTimeout),
            // It has responded, and need not read the rest of the request.
            Side::Backend if is_stream => self.backend_fault(FaultKind::Stalled),
            Side::Backend => self.backend_fault(FaultKind::WriteTimeout),
        }
    }

    fn download_wait(&self, download: &Download) -> Option<Wait> {
        let Limits { client, min_rate, .. } = self.limits;
        match self.client.output.is_empty() {
            false => Some(Wait { side: Side::Client, pause: Some(client), min_rate }),
            true if download.is_done => None,
            true => Some(Wait { side: Side::Backend, pause: download.pause, min_rate: 0 }),
        }
    }

    fn download_fault(&self, side: Side) -> Fault {
        match side {
            Side::Client => fault(FaultKind::WriteTimeout),
            Side::Backend => self.backend_fault(FaultKind::Stalled),
        }
    }

    fn late_response(&self) -> Fault {
        match self.upload.state {
            UploadState::Broken => self.backend_fault(FaultKind::Closed),
            _ => self.backend_fault(FaultKind::ReadTimeout),
        }
    }

    /// Writes informational responses, which nothing waits for.
    fn poll_informational(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while !self.client.output.is_empty() {
            match self.client.output.poll_write(&mut self.client.stream, cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(fault(FaultKind::Closed)),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Sends what has arrived of the request. A backend that takes nothing more is no error, because it may have
    /// responded.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Fault> {
        loop {
            let piece = match self.reads_body() {
                true => self.body.poll_piece(&mut self.upload.place, self.client, cx),
                false => Poll::Pending,
            };
            match piece {
                Poll::Ready(piece) => {
                    self.upload.is_flushed = false;
                    self.queue(piece?)?;
                }
                Poll::Pending if self.upstream.output.is_empty() => return self.settled(cx),
                Poll::Pending => match self.upstream.output.poll_write(&mut self.upstream.stream, cx) {
                    Poll::Ready(Ok(_)) => self.upload.writes += 1,
                    Poll::Ready(Err(_)) => self.give_up_upload()?,
                    Poll::Pending => return Ok(Poll::Pending),
                },
            }
        }
    }

    /// Returns whether more of the body is read now. The client has to wait while the backend does not read.
    fn reads_body(&self) -> bool {
        self.upload.state == UploadState::Reading && self.upstream.output.has_room()
    }

    /// Sends what TLS holds back, also while more of the body is to come: the client may wait for the response to what
    /// it has sent.
    fn settled(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Fault> {
        if let UploadState::Done | UploadState::Broken = self.upload.state {
            return Ok(Poll::Ready(()));
        }
        let flushed = self.upstream.output.poll_flush(&mut self.upstream.stream, cx);
        self.upload.is_flushed = flushed.is_ready();
        match flushed {
            Poll::Ready(Err(_)) => self.give_up_upload()?,
            Poll::Ready(Ok(())) if self.upload.state == UploadState::Writing => {
                self.upload.state = UploadState::Done;
            }
            Poll::Ready(Ok(())) | Poll::Pending => return Ok(Poll::Pending),
        }
        Ok(Poll::Ready(()))
    }

    fn queue(&mut self, piece: Piece) -> Result<(), Fault> {
        match piece {
            Piece::Data(data) => {
                if let Some(size) = NonZeroUsize::new(data.len()) {
                    let frame = self.upload.writer.frame(size).map_err(|_| fault(FaultKind::Protocol))?;
                    self.upstream.output.push(frame, data);
                }
            }
            Piece::End => {
                self.upload.writer.end().map_err(|_| fault(FaultKind::Protocol))?;
                if self.upload.writer == BodyWriter::Chunked {
                    write::last_chunk(self.upstream.output.text(), self.body.trailers(), &self.upload.named);
                }
                self.upload.state = UploadState::Writing;
            }
        }
        Ok(())
    }

    /// Stops the upload. The backend may have responded, unless it has nothing of the request.
    fn give_up_upload(&mut self) -> Result<(), Fault> {
        if self.nothing_sent() {
            return Err(self.backend_fault(FaultKind::Closed));
        }
        self.upstream.output.clear();
        self.upload.state = UploadState::Broken;
        self.await_response(LAST_WORDS);
        Ok(())
    }

    /// Returns whether the backend certainly has no byte of the request. With TLS, a part of a failed write may have
    /// left.
    fn nothing_sent(&self) -> bool {
        self.upload.writes == 0 && !self.upstream.stream.is_tls()
    }

    /// Returns the fault of a connection to the backend that broke before the head of the response.
    fn broken(&mut self, error: &io::Error) -> Fault {
        // rustls reports alerts and violations of its protocol so.
        if !self.upstream.stream.is_tls() || error.kind() != io::ErrorKind::InvalidData {
            return self.backend_fault(FaultKind::Closed);
        }
        self.tls_error = Some(values::tls_reason(&error.to_string()));
        self.backend_fault(FaultKind::Tls)
    }

    fn backend_fault(&self, kind: FaultKind) -> Fault {
        let (response_read, nothing_sent) = (self.response_read, self.nothing_sent());
        Fault { response_read, nothing_sent, ..Fault::of_backend(kind) }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Fault>> {
        loop {
            let found = self.scan.response(self.upstream.input.bytes(), &LIMITS);
            match found.map_err(|_| self.backend_fault(FaultKind::Protocol))? {
                Found::Head { start, end } => {
                    self.scan = Scan::default();
                    let bytes = self.upstream.input.take(start, end);
                    let head = ResponseHead::parse(bytes);
                    return Poll::Ready(head.map_err(|_| self.backend_fault(FaultKind::Protocol)));
                }
                Found::Incomplete => {
                    match ready!(self.upstream.input.poll_fill(&mut self.upstream.stream, cx)) {
                        Ok(true) => self.response_read = true,
                        Ok(false) => return Poll::Ready(Err(self.backend_fault(FaultKind::Closed))),
                        Err(error) => return Poll::Ready(Err(self.broken(&error))),
                    }
                }
            }
        }
    }

    /// Passes the body of the response on, and what is left of the request, until the client has all of the response.
    ///
    /// # Errors
    ///
    /// If one of the two sides fails.
    /// `sent` is the number of bytes of the body that were queued for the client, also if the future is dropped.
    pub(super) async fn bodies(&mut self, download: &mut Download, sent: &mut u64) -> Result<(), Fault> {
        std::future::poll_fn(|cx| {
            let result = self.poll_bodies(download, cx);
            *sent = download.bytes;
            result
        })
        .await
    }

    fn poll_bodies(&mut self, download: &mut Download, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        // Most responses are complete with the first write, and need nothing else.
        if let Poll::Ready(result) = self.poll_download(download, cx) {
            return Poll::Ready(result);
        }
        let _ = self.poll_upload(cx)?;
        if !self.reads_body() && self.client.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(fault(FaultKind::Closed)));
        }
        self.poll_deadline(Some(download), cx).map(Err)
    }

    fn poll_download(&mut self, download: &mut Download, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            let piece = match download.is_done || !self.client.output.has_room() {
                true => Poll::Pending,
                false if self.splices(download) => self.poll_splice(download, cx),
                false => self.poll_response_piece(download, cx),
            };
            match piece {
                Poll::Ready(piece) => {
                    download
                        .queue(piece?, self.client)
                        .map_err(|()| self.backend_fault(FaultKind::Protocol))?;
                }
                Poll::Pending if self.client.output.is_empty() => {
                    return if download.is_done { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
                Poll::Pending => match ready!(self.client.output.poll_write(&mut self.client.stream, cx)) {
                    Ok(written) => download.took(written),
                    Err(_) => return Poll::Ready(Err(fault(FaultKind::Closed))),
                },
            }
        }
    }

    /// Returns whether the next bytes of the body pass through a pipe. It is opened when it becomes worthwhile.
    fn splices(&mut self, download: &mut Download) -> bool {
        let is_copied = download.reader.rest() == 0 || !self.upstream.input.bytes().is_empty();
        if is_copied || !download.may_splice {
            return false;
        }
        if self.client.output.pipe().is_some() {
            return true;
        }
        if !splice::is_worthwhile(download.reader.rest()) {
            return false;
        }
        download.may_splice = self.client.open_pipe(&self.upstream.stream);
        if download.may_splice {
            self.upstream.input.release();
        }
        download.may_splice
    }

    /// Fills the pipe. When that is not possible, the body is copied again, by which the reason is found.
    fn poll_splice(
        &mut self,
        download: &mut Download,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponsePiece, Fault>> {
        let (tcp, pipe) = (self.upstream.stream.tcp(), self.client.output.pipe());
        let filled = match tcp.zip(pipe) {
            Some((tcp, pipe)) => ready!(pipe.poll_fill(tcp, download.reader.rest(), cx)).unwrap_or(0),
            None => 0,
        };
        let Some(size) = NonZeroUsize::new(filled) else {
            download.may_splice = false;
            self.client.output.set_pipe(None);
            return self.poll_response_piece(download, cx);
        };
        download.steps += 1;
        download.reader.pass(size);
        if download.reader.rest() == 0 {
            // A copy would read bytes beyond the end together with the last ones.
            let _ = self.upstream.input.poll_fill(&mut self.upstream.stream, cx);
        }
        Poll::Ready(Ok(ResponsePiece::Spliced(size)))
    }

    fn poll_response_piece(
        &mut self,
        download: &mut Download,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponsePiece, Fault>> {
        loop {
            let input = &mut self.upstream.input;
            let reader = &mut download.reader;
            let step = reader.step(input.bytes());
            match step.map_err(|_| self.backend_fault(FaultKind::Protocol))? {
                Step::Incomplete => {
                    let input = &mut self.upstream.input;
                    input.skip(input.bytes().len());
                    let filled = ready!(input.poll_fill(&mut self.upstream.stream, cx));
                    match filled {
                        Ok(true) => download.steps += 1,
                        Ok(false) if reader.ends_with_connection() => {
                            return Poll::Ready(Ok(ResponsePiece::End(None)));
                        }
                        Ok(false) | Err(_) => {
                            return Poll::Ready(Err(self.backend_fault(FaultKind::Closed)));
                        }
                    }
                }
                Step::Data { start, end } => {
                    return Poll::Ready(Ok(ResponsePiece::Data(self.upstream.input.take(start, end))));
                }
                Step::End { end } => {
                    self.upstream.input.skip(end);
                    let trailers = reader.take_trailers();
                    let trailers = trailers.map_err(|_| self.backend_fault(FaultKind::Protocol))?;
                    return Poll::Ready(Ok(ResponsePiece::End(trailers)));
                }
            }
        }
    }
}

/// The next part of the body of a response.
#[derive(Debug)]
enum ResponsePiece {
    Data(Bytes),
    /// This many bytes are in the pipe to the client.
    Spliced(NonZeroUsize),
    End(Option<FieldLines>),
}

// === impl Download ===

impl Download {
    /// Returns the body of a response whose head names these fields in `Connection`.
    pub(super) fn new(
        reader: BodyReader,
        writer: BodyWriter,
        named: Named,
        pause: Option<Duration>,
        now: Instant,
    ) -> Self {
        let (direction, may_splice) = (Direction::new(now), true);
        Self {
            reader,
            writer,
            named,
            pause,
            is_done: false,
            steps: 0,
            taken: 0,
            direction,
            bytes: 0,
            may_splice,
        }
    }

    fn took(&mut self, written: usize) {
        self.steps += 1;
        self.taken += written as u64;
    }

    /// Returns whether the body is complete, and the client has it.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    fn queue(&mut self, piece: ResponsePiece, client: &mut Client) -> Result<(), ()> {
        match piece {
            ResponsePiece::Data(data) => {
                let Some(size) = NonZeroUsize::new(data.len()) else { return Ok(()) };
                let frame = self.writer.frame(size).map_err(|_| ())?;
                self.bytes += size.get() as u64;
                client.output.push(frame, data);
            }
            ResponsePiece::Spliced(size) => {
                self.writer.frame(size).map_err(|_| ())?;
                self.bytes += size.get() as u64;
            }
            ResponsePiece::End(trailers) => {
                client.output.set_pipe(None);
                self.writer.end().map_err(|_| ())?;
                if self.writer == BodyWriter::Chunked {
                    write::last_chunk(client.output.text(), trailers.as_ref(), &self.named);
                }
                self.is_done = true;
            }
        }
        Ok(())
    }
}
