//! A disk that is a raw file or a block device of the host.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use super::image::{Image, OpenError, OpenOptions};
use super::job::Job;
use super::uring::Uring;
use super::worker::Worker;
use super::{Completion, Disk, Geometry, Request, SECTOR};

/// See the module.
pub struct RawDisk {
    image: Arc<Image>,
    engine: Engine,
}

enum Engine {
    Uring(Box<Uring>),
    Worker(Worker),
}

impl RawDisk {
    /// Opens and locks an image. Requests run on an io_uring, or on a thread where the host forbids that.
    pub fn open(path: &Path, options: OpenOptions) -> Result<RawDisk, OpenError> {
        let image = Arc::new(Image::open(path, options)?);
        let engine = match Uring::new(image.clone()) {
            Ok(uring) => Ok(Engine::Uring(Box::new(uring))),
            Err(_) => Worker::new(image.clone()).map(Engine::Worker),
        };
        RawDisk::with_engine(path, image, engine)
    }

    /// The same without io_uring.
    pub fn open_on_a_thread(path: &Path, options: OpenOptions) -> Result<RawDisk, OpenError> {
        let image = Arc::new(Image::open(path, options)?);
        let engine = Worker::new(image.clone()).map(Engine::Worker);
        RawDisk::with_engine(path, image, engine)
    }

    fn with_engine(path: &Path, image: Arc<Image>, engine: io::Result<Engine>) -> Result<RawDisk, OpenError> {
        let refused = |source| OpenError::Host { action: "start a thread for", path: path.into(), source };
        Ok(RawDisk { image, engine: engine.map_err(refused)? })
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
        let job = Job::new(token, request, &self.image, SECTOR);
        match &mut self.engine {
            Engine::Uring(uring) => uring.start(job),
            Engine::Worker(worker) => worker.start(job),
        }
    }

    fn kick(&mut self) {
        if let Engine::Uring(uring) = &mut self.engine {
            uring.kick();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        match &mut self.engine {
            Engine::Uring(uring) => uring.completed(),
            Engine::Worker(worker) => worker.completed(),
        }
    }

    fn event(&self) -> RawFd {
        match &self.engine {
            Engine::Uring(uring) => uring.event(),
            Engine::Worker(worker) => worker.event(),
        }
    }

    fn drain(&mut self) {
        match &mut self.engine {
            Engine::Uring(uring) => uring.drain(),
            Engine::Worker(worker) => worker.drain(),
        }
    }
}
