//! What is done to the disks of a machine that is off.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_core::backend::disk::tools::{self, Job, Target, ToolError};
use vmm_core::backend::disk::{self, Format};
use vmm_core::config::{DiskBus, DiskConfig};

use super::layers::{self, FOLDER};
use super::{LibraryError, Machine, files, wrong_size};

/// Why something is not done to a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskRefusal {
    /// There is none of that number.
    #[error("{name:?} has no disk {disk}; it has {count}, and the first is 0")]
    None {
        /// The machine.
        name: String,
        /// Which disk.
        disk: usize,
        /// How many it has.
        count: usize,
    },
    /// Its guest goes on with what it knows of its disks.
    #[error(
        "{name:?} is suspended, and when it goes on its disks have to be what they were; resume it and shut it down first"
    )]
    Suspended {
        /// The machine.
        name: String,
    },
    /// Somebody else may have the same file by another name.
    #[error(
        "the disk image {} has other names, in another machine perhaps, and is not written to; make a full clone of {name:?}, and \
         change that", path.display()
    )]
    Shared {
        /// The machine.
        name: String,
        /// The image.
        path: PathBuf,
    },
    /// It is a snapshot's.
    #[error("{} is of a snapshot of {name:?}, and stays as it is; delete that first", path.display())]
    OfSnapshot {
        /// The machine.
        name: String,
        /// The image.
        path: PathBuf,
    },
    /// Snapshots stand on what it is.
    #[error(
        "{name:?} has snapshots, or checkpoints on its timeline, which need its disks as they are; delete them first, or make a \
         full clone of it, and change that"
    )]
    Snapshots {
        /// The machine.
        name: String,
    },
    /// It is somebody else's to change.
    #[error(
        "the disk image {} lies outside of the folder of {name:?}; convert it to another file, and attach that", path.display()
    )]
    Outside {
        /// The machine.
        name: String,
        /// The image.
        path: PathBuf,
    },
    /// The copy is not what was copied.
    #[error(
        "the copy of disk {disk} of {name:?} does not hold the same; nothing was changed. Check the host's disk and memory"
    )]
    NotTheSame {
        /// The machine.
        name: String,
        /// Which disk.
        disk: usize,
    },
}

impl Machine {
    /// The image of a disk, from 0.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn disk_image(&self, disk: usize) -> Result<PathBuf, LibraryError> {
        let disks = &self.config.disks;
        let none = || DiskRefusal::None { name: self.name.clone(), disk, count: disks.len() };
        Ok(disks.get(disk).map(|disk| self.resolve(&disk.path)).ok_or_else(none)?)
    }

    /// The same, where it may be written to. The caller has the lock of the machine, which is off.
    ///
    /// # Errors
    /// There is no such disk, the machine is suspended, or the image has other names.
    pub(crate) fn disk_to_change(&mut self, disk: usize) -> Result<PathBuf, LibraryError> {
        use std::os::unix::fs::MetadataExt;
        self.finish_what_was_begun()?;
        let path = self.disk_image(disk)?;
        self.refuse_suspended()?;
        let meta = std::fs::metadata(&path).map_err(LibraryError::io("look at", &path))?;
        if meta.is_file() && meta.nlink() > 1 {
            return Err(DiskRefusal::Shared { name: self.name.clone(), path }.into());
        }
        Ok(path)
    }

    fn refuse_suspended(&self) -> Result<(), LibraryError> {
        match self.goes_on_from()? {
            Some(_) => Err(DiskRefusal::Suspended { name: self.name.clone() }.into()),
            None => Ok(()),
        }
    }

    /// Which disk an image is, from 0, or that one of its snapshots may need it.
    ///
    /// # Errors
    /// It lies among its disks and is none.
    pub(crate) fn disk_of(&self, image: &Path) -> Result<Option<usize>, LibraryError> {
        let same = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == image);
        let found = self.config.disks.iter().map(|disk| self.resolve(&disk.path)).position(|path| same(&path));
        let among = self.folder().join(FOLDER).canonicalize().is_ok_and(|folder| image.starts_with(folder));
        match found {
            None if among => Err(DiskRefusal::OfSnapshot { name: self.name.clone(), path: image.into() }.into()),
            found => Ok(found),
        }
    }

    /// Gives it one more disk, empty and sparse, of `size` bytes, behind the controller `bus`; where nobody says which, behind that of
    /// its first disk, or if that has no room, the default one. Says which it is, from 0. The caller has the lock of the machine,
    /// which is off.
    ///
    /// Killed at any instant, it has the disk or not, and an image that it has not goes the next time that something is done to it.
    ///
    /// # Errors
    /// The machine is suspended or has as many as it can, a disk can't have that size, or the host refuses something: nothing is
    /// changed then.
    pub(crate) fn add_disk(&mut self, size: u64, bus: Option<DiskBus>) -> Result<usize, LibraryError> {
        self.finish_what_was_begun()?;
        self.refuse_suspended()?;
        let number = self.config.disks.len();
        let new = self.free_disk_name(number, Format::Raw);
        let with = |bus| {
            let mut changed = self.clone();
            changed.config.disks.push(DiskConfig { bus, ..DiskConfig::new(PathBuf::from(FOLDER).join(&new)) });
            changed
        };
        let mut changed = with(bus.or(self.config.disks.first().map(|first| first.bus)).unwrap_or_default());
        if bus.is_none() && changed.config.validate().is_err() {
            changed = with(DiskBus::default());
        }
        let invalid = changed.config.validate().err().unwrap_or_default();
        let wrong: Vec<_> = wrong_size(number, size).into_iter().chain(invalid).collect();
        if !wrong.is_empty() {
            return Err(LibraryError::Config(wrong));
        }
        let path = changed.disk_image(number)?;
        self.replace_images(&new, changed, |_| {
            files::create_sparse(&path, size).map_err(LibraryError::io("make the disk", &path))
        })?;
        Ok(number)
    }

    /// Has a disk in a format from now on, if it has another: what is on it is copied, the copy is compared, and the old image goes.
    /// The caller has the lock of the machine, which is off.
    ///
    /// Killed at any instant, it has the old image or the new one, and the other goes the next time that something is done to it.
    ///
    /// # Errors
    /// There is no such disk, something else needs its image, the host has no room, or `progress` said no: nothing is changed then.
    pub(crate) fn switch_disk(
        &mut self,
        disk: usize,
        format: Format,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), LibraryError> {
        let from = self.disk_to_change(disk)?;
        // It may be asked for again by somebody who did not hear how it ended.
        if disk::facts(&from).map_err(layers::image)?.format == format {
            return Ok(());
        }
        let name = || self.name.clone();
        let checkpoints = self.checkpoints();
        if !checkpoints.can_be_read()? || !checkpoints.list()?.is_empty() {
            return Err(DiskRefusal::Snapshots { name: name() }.into());
        }
        if !layers::is_inside(self.folder(), &from) {
            return Err(DiskRefusal::Outside { name: name(), path: from }.into());
        }
        let new = self.free_disk_name(disk, format);
        let mut changed = self.clone();
        if let Some(disk) = changed.config.disks.get_mut(disk) {
            disk.path = PathBuf::from(FOLDER).join(&new);
        }
        let to = changed.disk_image(disk)?;
        self.replace_images(&new, changed, |machine| machine.copy_disk(disk, &from, &to, format, progress))
    }

    /// Becomes `changed`, which has the image `new` in its folder of disks, once `make` has made that. Of the images, those go that
    /// it does not need then.
    fn replace_images(
        &mut self,
        new: &str,
        changed: Machine,
        make: impl FnOnce(&Machine) -> Result<(), LibraryError>,
    ) -> Result<(), LibraryError> {
        layers::begin_replacement(self, new)?;
        match make(self).and_then(|()| changed.write()) {
            Ok(()) => {
                *self = changed;
                layers::finish_replacement(self)
            }
            Err(error) => {
                // Where the old file can't be written it may name either, durably or not, and both stay.
                if self.write().is_ok() {
                    layers::finish_replacement(self)?;
                }
                Err(error)
            }
        }
    }

    /// A name in its folder of disks that no file has.
    fn free_disk_name(&self, disk: usize, format: Format) -> String {
        // By this ending it is raw whatever the guest writes to its start.
        let ending = format.name();
        let mut names = (0..=u32::MAX).map(|number| match number {
            0 => format!("disk-{disk}.{ending}"),
            number => format!("disk-{disk}.{number}.{ending}"),
        });
        let folder = self.folder().join(FOLDER);
        names.find(|name| folder.join(name).symlink_metadata().is_err()).unwrap_or_default()
    }

    /// Copies a disk and proves that the copy is one.
    fn copy_disk(
        &self,
        disk: usize,
        from: &Path,
        to: &Path,
        format: Format,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), LibraryError> {
        let cancel = AtomicBool::new(false);
        // It is written, and read again.
        let mut told = |before: u64, done: u64, total: u64| {
            if !progress(before * total + done, 2 * total) {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let failed = |error: ToolError| match error {
            ToolError::Cancelled => LibraryError::Cancelled,
            error => layers::image(error),
        };
        let target = Target { format, cluster: None };
        let mut job = Job { progress: &mut |done, total| told(0, done, total), cancel: &cancel };
        tools::convert(from, to, target, &mut job).map_err(failed)?;
        let mut job = Job { progress: &mut |done, total| told(1, done, total), cancel: &cancel };
        match tools::is_same(from, to, &mut job).map_err(failed)? {
            true => Ok(()),
            false => Err(DiskRefusal::NotTheSame { name: self.name.clone(), disk }.into()),
        }
    }
}
