//! A firmware's variable store: the contents of its flash chip, kept in a file of the host.
//!
//! The contents are in memory, where the guest reads them; what it programs is written to the file at once (it survives
//! the end of this process) and made durable from a worker thread soon after (it survives a power cut).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::take_lock;
use crate::hw::SharedRegion;

/// Why a variable store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NvramError {
    /// The host refused.
    #[error("could not {action} the variable store {}", .path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("the variable store {} is in use by another virtual machine", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is not the size of this firmware's.
    #[error(
        "the variable store {} has {found} bytes, and this firmware's has {wanted}: another firmware made it, or it is damaged; reset the machine's UEFI variables to start with a new one",
        .path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size, bytes.
        found: u64,
        /// The right one, bytes.
        wanted: u64,
    },
}

/// See the module.
pub struct Nvram {
    contents: Arc<SharedRegion>,
    /// Locked for this process; absent when nothing is to be kept.
    file: Option<File>,
}

impl Nvram {
    /// Opens the store at `path`, and makes it from `template` where there is none: whole, or not at all. It has the
    /// template's size, whole pages.
    pub fn open(path: &Path, template: &[u8]) -> Result<Nvram, NvramError> {
        let host = |action| move |source| NvramError::Host { action, path: path.into(), source };
        // Metadata first: opening a pipe would wait for its other end.
        match std::fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                return Err(host("open")(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, template).map_err(host("make"))?,
            Err(error) => return Err(host("open")(error)),
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(host("open"))?;
        take_lock(|| Ok(file.try_lock()?)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => NvramError::InUse { path: path.into() },
            _ => host("lock")(error),
        })?;
        let (found, wanted) = (file.metadata().map_err(host("open"))?.len(), template.len() as u64);
        if found != wanted {
            return Err(NvramError::Size { path: path.into(), found, wanted });
        }
        let mut bytes = vec![0; template.len()];
        file.read_exact_at(&mut bytes, 0).map_err(host("read"))?;
        let contents = region(&bytes).map_err(host("allocate memory for"))?;
        Ok(Nvram { contents, file: Some(file) })
    }

    /// A store that is forgotten with the machine.
    pub fn volatile(template: &[u8]) -> io::Result<Nvram> {
        Ok(Nvram { contents: region(template)?, file: None })
    }

    /// The contents. They may be read and changed at any place in any way.
    pub fn contents(&self) -> &Arc<SharedRegion> {
        &self.contents
    }

    /// A copy of all of it.
    pub fn copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.contents.len()];
        if let Some(all) = self.contents.slice(0, bytes.len()) {
            all.copy_to(&mut bytes);
        }
        bytes
    }

    /// Writes a part of the contents to the file.
    pub fn keep(&self, offset: usize, len: usize) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let part = self.contents.slice(offset, len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut bytes = vec![0; len];
        part.copy_to(&mut bytes);
        file.write_all_at(&bytes, offset as u64)
    }

    /// Has every later [`Nvram::keep`] fail, as on a disk that is full.
    #[cfg(test)]
    pub(crate) fn fail_from_now_on(&mut self) {
        self.file = File::open("/dev/null").ok();
    }

    /// Waits until everything that was kept is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// Memory with these bytes.
fn region(bytes: &[u8]) -> io::Result<Arc<SharedRegion>> {
    let region = SharedRegion::new(bytes.len())?;
    region.slice(0, bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from(bytes);
    Ok(region)
}

/// Makes a file that has all its bytes from the moment it is there.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    // Left over from a process of this number that did not live to rename it.
    let _ = std::fs::remove_file(&temporary);
    let made = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poke(nvram: &Nvram, offset: usize, byte: u8) {
        nvram.contents().slice(offset, 1).unwrap().copy_from(&[byte]);
    }

    #[test]
    fn a_new_store_is_the_template_and_remembers_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvram.fd");
        let template = vec![0xff; 0x2000];
        let nvram = Nvram::open(&path, &template).unwrap();
        assert_eq!(nvram.copy(), template);
        poke(&nvram, 0x1234, 7);
        poke(&nvram, 0x1235, 8);
        nvram.keep(0x1234, 1).unwrap();
        nvram.sync().unwrap();
        drop(nvram);
        let again = Nvram::open(&path, &vec![0; 0x2000]).unwrap();
        assert_eq!(again.copy()[0x1233..0x1236], [0xff, 7, 0xff]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_store_of_another_size_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvram.fd");
        std::fs::write(&path, [1; 100]).unwrap();
        let Err(NvramError::Size { found: 100, wanted: 0x1000, .. }) = Nvram::open(&path, &[0; 0x1000]) else {
            panic!("a store of the wrong size was taken");
        };
        assert_eq!(std::fs::read(&path).unwrap(), [1; 100]);
    }

    #[test]
    fn two_machines_do_not_share_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvram.fd");
        let first = Nvram::open(&path, &[0; 0x1000]).unwrap();
        assert!(matches!(Nvram::open(&path, &[0; 0x1000]), Err(NvramError::InUse { .. })));
        drop(first);
        assert!(Nvram::open(&path, &[0; 0x1000]).is_ok());
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), Path::new("/dev/null"), &dir.path().join("no/folder")] {
            assert!(matches!(Nvram::open(path, &[0; 0x1000]), Err(NvramError::Host { .. })), "{}", path.display());
        }
    }

    #[test]
    fn a_volatile_store_keeps_nothing_and_fails_at_nothing() {
        let nvram = Nvram::volatile(&[3; 0x1000]).unwrap();
        poke(&nvram, 0, 1);
        nvram.keep(0, 0x1000).unwrap();
        nvram.sync().unwrap();
        assert_eq!(nvram.copy()[..2], [1, 3]);
    }
}
