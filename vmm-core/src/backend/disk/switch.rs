//! A disk whose image can be exchanged for another that reads the same, while nothing of the machine runs: what a snapshot
//! does, after which the guest writes to a new image and the old one stays as it is.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Completion, Disk, DiskError, Format, Geometry, OpenError, OpenOptions, Request};

/// What is there instead of an image that could not be opened any more: every request fails.
struct Lost {
    ended: VecDeque<u64>,
    event: EventFd,
}

struct Inner {
    image: Option<Box<dyn Disk>>,
    path: PathBuf,
    lost: Lost,
}

/// The disk, as a device has it.
pub struct SwitchDisk {
    geometry: Geometry,
    inner: Arc<Mutex<Inner>>,
}

/// A hand on a [`SwitchDisk`].
#[derive(Clone)]
pub struct Switch {
    geometry: Geometry,
    options: OpenOptions,
    inner: Arc<Mutex<Inner>>,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SwitchDisk {
    /// Opens and locks the disk at `path`, of whichever format.
    pub fn open(path: &Path, options: OpenOptions) -> Result<(SwitchDisk, Switch), OpenError> {
        let host = |source| OpenError::Host { action: "use", path: path.into(), source };
        let image = super::open(path, options)?;
        let geometry = image.geometry();
        let event = EventFd::new(EFD_NONBLOCK).map_err(host)?;
        let lost = Lost { ended: VecDeque::new(), event };
        let inner = Arc::new(Mutex::new(Inner { image: Some(image), path: path.into(), lost }));
        Ok((SwitchDisk { geometry, inner: inner.clone() }, Switch { geometry, options, inner }))
    }
}

impl Switch {
    /// The image's file.
    pub fn path(&self) -> PathBuf {
        lock(&self.inner).path.clone()
    }

    /// Has all that was written on stable storage, as if the image were closed. The device is stopped.
    ///
    /// # Errors
    /// The host can't write it.
    pub fn settle(&self) -> Result<(), OpenError> {
        let mut inner = lock(&self.inner);
        let settled = inner.image.as_mut().map_or(Ok(()), |image| image.settle());
        settled.map_err(|error| OpenError::Host {
            action: "write to",
            path: inner.path.clone(),
            source: io::Error::other(error),
        })
    }

    /// Closes the image and goes on with the one at `path`, which may be the same. The device is stopped, and reads the same
    /// from both. With `onto`, the new one stands on that from now on, which holds the same as what it stood on.
    ///
    /// # Errors
    /// It can't be opened or has another size; the old image is in use again.
    pub fn exchange(&self, path: &Path, onto: Option<&(PathBuf, Format)>) -> Result<(), OpenError> {
        self.settle()?;
        let mut inner = lock(&self.inner);
        // Its lock goes with it: the other may stand on it.
        inner.image = None;
        let moved = onto.map_or(Ok(()), |(backing, format)| super::rebase_header(path, Some((backing, *format))));
        let moved = moved.map_err(|error| OpenError::Host {
            action: "change",
            path: path.into(),
            source: io::Error::other(error),
        });
        let opened = moved.and_then(|()| super::open(path, self.options)).and_then(|image| {
            let (size, found) = (self.geometry.size, image.geometry().size);
            let wrong = || io::Error::other(format!("it has {found} bytes, the machine's disk has {size}"));
            match found == size {
                true => Ok(image),
                false => Err(OpenError::Host { action: "use", path: path.into(), source: wrong() }),
            }
        });
        match opened {
            Ok(image) => {
                (inner.image, inner.path) = (Some(image), path.into());
                Ok(())
            }
            Err(error) => {
                inner.image = Some(super::open(&inner.path, self.options)?);
                Err(error)
            }
        }
    }
}

impl Disk for SwitchDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, token: u64, request: Request) {
        let inner = &mut *lock(&self.inner);
        match &mut inner.image {
            Some(image) => image.submit(token, request),
            None => {
                inner.lost.ended.push_back(token);
                let _ = inner.lost.event.write(1);
            }
        }
    }

    fn kick(&mut self) {
        if let Some(image) = &mut lock(&self.inner).image {
            image.kick();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        let inner = &mut *lock(&self.inner);
        match &mut inner.image {
            Some(image) => image.completed(),
            None => {
                let token = inner.lost.ended.pop_front()?;
                Some(Completion { token, result: Err(DiskError::Host(io::Error::from_raw_os_error(libc::EIO))) })
            }
        }
    }

    fn event(&self) -> RawFd {
        let inner = lock(&self.inner);
        inner.image.as_ref().map_or_else(|| inner.lost.event.as_raw_fd(), |image| image.event())
    }

    fn drain(&mut self) {
        if let Some(image) = &mut lock(&self.inner).image {
            image.drain();
        }
    }

    fn settle(&mut self) -> Result<(), DiskError> {
        lock(&self.inner).image.as_mut().map_or(Ok(()), |image| image.settle())
    }
}
