//! A disk that is a qcow2 image, which may stand on others (QEMU's docs/interop/qcow2.txt).
//!
//! It belongs to one thread. A request is cut into parts: what is mapped goes straight between its buffers and the file,
//! all parts of all requests beside each other. What is not yet known waits until the table was read; what is not yet
//! mapped gets clusters of its own (`write`). Tables reach the file with a flush, in an order in which the image is good
//! whenever the power fails (`flush`).

mod chain;
mod commit;
mod create;
mod flush;
mod format;
mod grow;
mod layer;
mod piece;
mod read;
mod refcounts;
mod repair;
mod table;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use chain::Roots;
pub(super) use chain::{is_qcow2_file, look};
pub(super) use commit::{Copier, Extent, perform};
pub use commit::{Merge, commit};
pub(super) use create::format;
pub use create::{CreateError, CreateOptions, create, create_overlay, create_raw, rebase_header};
pub use format::FormatError;
pub use repair::{Findings, check, repair_file};

use self::layer::Layer;
use self::write::Writer;
use super::buffers::Scratch;
use super::image::{OpenError, OpenOptions};
use super::pool::{Pool, Way};
use super::{Buffers, Completion, Disk, DiskError, Geometry, Request, SECTOR};

/// Steps of one request before others have their turn.
const STEPS: usize = 256;
/// Inflated clusters that are kept.
const INFLATED: usize = 8;

/// See the module.
pub struct Qcow2Disk {
    /// The top one first.
    layers: Vec<Layer>,
    /// What is needed to change the top one.
    writer: Option<Writer>,
    pool: Pool<Tag>,
    geometry: Geometry,
    requests: Vec<Option<Active>>,
    free: Vec<usize>,
    /// Requests that wait for a part of a table, or for a compressed cluster.
    parked: HashMap<Key, Vec<usize>>,
    inflated: VecDeque<(Key, Arc<[u8]>)>,
    /// Why what nobody but the caller waits for could not be read.
    load_failed: Option<DiskError>,
    /// How our own flush ended.
    own_flush: Option<Result<(), DiskError>>,
    /// Requests that can go on.
    ready: VecDeque<usize>,
    /// Numbers the requests in the order in which they came.
    next_seq: u64,
    done: VecDeque<Completion>,
}

/// What is read for requests that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Slice { layer: usize, slice: u32 },
    Packed { layer: usize, entry: u64 },
}

/// Whose job it was.
enum Tag {
    /// A part of the request in this slot.
    Part(usize),
    Load(Key, Arc<Scratch>),
    /// Data in new clusters, by the first guest cluster.
    Allocated(u64),
    /// Tables on their way to the file, or the flush behind them.
    Flush,
    /// Clusters given back to the host.
    Punched {
        start: u64,
        count: u64,
    },
}

/// Whose request it is.
enum Owner {
    /// The device's, by its token.
    Device(u64),
    /// Our own flush.
    Own,
    /// It reads what is around the data of an allocation, by that one's first guest cluster.
    Fill(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero { unmap: bool },
    Discard,
    Flush,
}

/// A request on its way.
struct Active {
    owner: Owner,
    kind: Kind,
    /// What has no job yet.
    offset: u64,
    end: u64,
    buffers: Option<Buffers>,
    /// Jobs that have not ended.
    jobs: usize,
    failed: Option<DiskError>,
    /// A flush is to follow.
    durable: bool,
    /// It is to be woken before it goes on.
    waiting: bool,
    seq: u64,
}

/// How a request goes on.
enum Next {
    /// With its next step.
    Step,
    /// When it is woken.
    Wait,
}

impl Qcow2Disk {
    /// Opens and locks an image with all that it stands on, which is in its own folder or that machine's.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::open_among(path, options, &Roots::of(path))
    }

    /// The same with these folders for what it stands on.
    pub fn open_among(path: &Path, options: OpenOptions, roots: &Roots) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::open_with(path, options, roots, Way::Best, false)
    }

    /// `beside`: others read what is in it and is not changed now.
    pub(super) fn open_with(
        path: &Path,
        options: OpenOptions,
        roots: &Roots,
        way: Way,
        beside: bool,
    ) -> Result<Qcow2Disk, OpenError> {
        let layers = chain::open(path, options, roots, beside)?;
        Qcow2Disk::with_layers(path, layers, options, way)
    }

    /// The same with images that are open already.
    fn with_layers(path: &Path, layers: Vec<Layer>, options: OpenOptions, way: Way) -> Result<Qcow2Disk, OpenError> {
        let writer = if options.readonly { None } else { Some(Writer::open(path, &layers)?) };
        let refused = |source| OpenError::Host { action: "start a thread for", path: path.into(), source };
        let pool = Pool::new(way).map_err(refused)?;
        let (size, cluster) = match layers.first() {
            Some(top) => (top.size, top.header().map_or(4096, |h| 1u32 << h.cluster_bits)),
            None => (0, 4096),
        };
        let geometry = Geometry {
            size: size.next_multiple_of(SECTOR),
            readonly: options.readonly,
            physical_block: cluster.min(4096),
            discard_granularity: if options.readonly { 0 } else { cluster },
        };
        Ok(Qcow2Disk {
            layers,
            writer,
            pool,
            geometry,
            requests: Vec::new(),
            free: Vec::new(),
            parked: HashMap::new(),
            inflated: VecDeque::new(),
            ready: VecDeque::new(),
            load_failed: None,
            own_flush: None,
            next_seq: 0,
            done: VecDeque::new(),
        })
    }

    /// The images, from the top one down.
    pub fn chain(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.image.path.clone()).collect()
    }

    /// Whether requests go around the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.layers.first().is_some_and(|layer| layer.image.is_direct())
    }

    fn add(&mut self, active: Active) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() - 1
        });
        self.requests[slot] = Some(active);
        slot
    }

    fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    fn active(&mut self, owner: Owner, request: Request) -> Active {
        let (kind, offset, len, buffers, durable) = match request {
            Request::Read { offset, buffers } => (Kind::Read, offset, buffers.len(), Some(buffers), false),
            Request::Write { offset, buffers, durable } => (Kind::Write, offset, buffers.len(), Some(buffers), durable),
            Request::Flush => (Kind::Flush, 0, 0, None, true),
            Request::Discard { offset, len } => (Kind::Discard, offset, len, None, false),
            Request::WriteZeroes { offset, len, unmap, durable } => (Kind::Zero { unmap }, offset, len, None, durable),
        };
        let end =
            offset.checked_add(len).filter(|end| *end <= self.geometry.size && (offset | len).is_multiple_of(SECTOR));
        let failed = match (end, kind) {
            (None, _) => Some(DiskError::OutOfRange),
            (_, Kind::Write | Kind::Zero { .. } | Kind::Discard) if self.writer.is_none() => Some(DiskError::ReadOnly),
            _ => None,
        };
        // What a read-only disk has was flushed by whoever wrote it.
        let durable = durable && self.writer.is_some();
        let seq = self.seq();
        Active {
            owner,
            kind,
            offset,
            end: end.unwrap_or(offset),
            buffers,
            jobs: 0,
            failed,
            durable,
            waiting: false,
            seq,
        }
    }

    /// Takes a request as far as it goes now.
    fn advance(&mut self, slot: usize) {
        let Some(mut request) = self.requests[slot].take() else { return };
        request.waiting = false;
        let mut steps = STEPS;
        while request.failed.is_none() && request.offset < request.end {
            if steps == 0 {
                request.waiting = true;
                self.ready.push_back(slot);
                self.requests[slot] = Some(request);
                return;
            }
            steps -= 1;
            match self.step(slot, &mut request) {
                Ok(Next::Step) => {}
                Ok(Next::Wait) => {
                    request.waiting = true;
                    self.requests[slot] = Some(request);
                    return;
                }
                Err(error) => request.failed = Some(error),
            }
        }
        self.requests[slot] = Some(request);
        self.settle_request(slot);
    }

    /// Ends a request of which nothing is left to be started, once nothing of it is on its way.
    fn settle_request(&mut self, slot: usize) {
        let Some(Some(request)) = self.requests.get_mut(slot) else { return };
        if request.jobs > 0 || request.waiting {
            return;
        }
        if request.failed.is_none() && std::mem::take(&mut request.durable) {
            // It is among its jobs until the flush is over.
            request.jobs = 1;
            self.flush_for(slot);
            return;
        }
        let Some(request) = self.requests[slot].take() else { return };
        self.free.push(slot);
        let result = request.failed.map_or(Ok(()), Err);
        match request.owner {
            Owner::Device(token) => {
                self.done.push_back(Completion { token, result });
            }
            Owner::Own => self.own_flush = Some(result),
            Owner::Fill(first) => self.filled(first, result),
        }
    }

    /// A job of a request has ended.
    fn part_ended(&mut self, slot: usize, result: Result<(), DiskError>) {
        let Some(Some(request)) = self.requests.get_mut(slot) else { return };
        request.jobs -= 1;
        if let Err(error) = result {
            request.failed.get_or_insert(error);
        }
        if let (Kind::Write | Kind::Zero { .. }, Some(writer)) = (request.kind, &mut self.writer) {
            writer.unsynced = true;
        }
        self.settle_request(slot);
    }

    fn step(&mut self, slot: usize, request: &mut Active) -> Result<Next, DiskError> {
        match request.kind {
            Kind::Read => self.read_step(slot, request),
            Kind::Write => self.write_step(slot, request, None),
            Kind::Zero { unmap } => self.zero_step(slot, request, unmap),
            Kind::Discard => self.discard_step(slot, request),
            Kind::Flush => Ok(Next::Step),
        }
    }

    fn run_ready(&mut self) {
        for _ in 0..self.ready.len() {
            if let Some(slot) = self.ready.pop_front() {
                self.advance(slot);
            }
        }
        if !self.ready.is_empty() {
            self.pool.signal();
        }
    }

    /// Goes on with whatever can go on.
    fn pump(&mut self) {
        loop {
            while let Some((tag, result)) = self.pool.completed() {
                match tag {
                    Tag::Part(slot) => self.part_ended(slot, result),
                    Tag::Load(key, scratch) => self.loaded(key, scratch, result),
                    Tag::Allocated(first) => self.allocated(first, result),
                    Tag::Flush => self.flush_job_ended(result),
                    Tag::Punched { start, count } => self.punched(start, count),
                }
            }
            self.run_ready();
            self.keep_house();
            self.pool.kick();
            if !self.pool.has_ended() {
                return;
            }
        }
    }

    /// Goes on and waits until nothing is on its way.
    fn run_to_rest(&mut self) {
        loop {
            self.pump();
            if self.pool.running() > 0 {
                self.pool.wait();
            } else if self.ready.is_empty() {
                return;
            }
        }
    }
}

impl Disk for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, token: u64, request: Request) {
        let active = self.active(Owner::Device(token), request);
        let slot = self.add(active);
        self.advance(slot);
    }

    fn kick(&mut self) {
        self.pump();
        if !self.done.is_empty() {
            self.pool.signal();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.pump();
        }
        self.done.pop_front()
    }

    fn event(&self) -> RawFd {
        self.pool.event()
    }

    fn drain(&mut self) {
        self.run_to_rest();
        if !self.done.is_empty() {
            self.pool.signal();
        }
    }

    fn settle(&mut self) -> Result<(), DiskError> {
        self.close()
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // What fails now fails where nobody listens; the mark in the header stays, and whoever opens it next repairs it.
        let _ = self.close();
    }
}
