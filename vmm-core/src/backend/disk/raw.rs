//! A disk that is a raw file or a block device of the host.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use super::image::{Image, OpenError, OpenOptions};
use super::job::Job;
use super::pool::{Pool, Way};
use super::{Completion, Disk, DiskError, Geometry, Request, SECTOR};

/// See the module.
pub struct RawDisk {
    image: Arc<Image>,
    pool: Pool<u64>,
    /// What a drain saw end.
    done: VecDeque<Completion>,
}

impl RawDisk {
    /// Opens and locks an image. Requests run on an io_uring, or on a thread where the host forbids that.
    pub fn open(path: &Path, options: OpenOptions) -> Result<RawDisk, OpenError> {
        RawDisk::with(path, Image::open(path, options)?, Way::Best)
    }

    /// The same without io_uring.
    pub fn open_on_a_thread(path: &Path, options: OpenOptions) -> Result<RawDisk, OpenError> {
        RawDisk::with(path, Image::open(path, options)?, Way::Thread)
    }

    /// On an image that is open already.
    pub(super) fn with(path: &Path, image: Image, way: Way) -> Result<RawDisk, OpenError> {
        let refused = |source| OpenError::Host { action: "start a thread for", path: path.into(), source };
        let pool = Pool::new(way).map_err(refused)?;
        Ok(RawDisk { image: Arc::new(image), pool, done: VecDeque::new() })
    }

    /// Whether requests go around the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.image.is_direct()
    }
}

impl Disk for RawDisk {
    fn geometry(&self) -> Geometry {
        self.image.geometry
    }

    fn submit(&mut self, token: u64, request: Request) {
        let job = Job::new(request, &self.image, SECTOR);
        self.pool.start(token, &self.image, job);
    }

    fn kick(&mut self) {
        self.pool.kick();
        if self.pool.has_ended() {
            self.pool.signal();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        let ended = || self.pool.completed().map(|(token, result)| Completion { token, result });
        self.done.pop_front().or_else(ended)
    }

    fn event(&self) -> RawFd {
        self.pool.event()
    }

    fn drain(&mut self) {
        while self.pool.running() > 0 {
            self.pool.wait();
            while let Some((token, result)) = self.pool.completed() {
                self.done.push_back(Completion { token, result });
            }
        }
        if !self.done.is_empty() {
            self.pool.signal();
        }
    }

    fn settle(&mut self) -> Result<(), DiskError> {
        self.drain();
        if self.image.geometry.readonly { Ok(()) } else { Job::sync().run(&self.image) }
    }
}
