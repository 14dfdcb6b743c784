//! A new image that is made beside its place, and takes it when it is whole and on stable storage: whenever a program is
//! killed, there is all of it or nothing under its name.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::image::{lock_alone, unlock};

/// Dropped before [`Part::put_in_place`], it goes.
pub(super) struct Part {
    /// Where it is made.
    pub path: PathBuf,
    to: PathBuf,
    /// The file once more, for its lock.
    locked: File,
    whole: bool,
}

/// Has a file's name on stable storage.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

impl Part {
    /// Begins what is to be at `to`, where nothing may be yet. What is left of an attempt that was killed goes; one that is still
    /// under way is an error. The file is locked until it is in place, or gone.
    pub fn begin(to: &Path) -> io::Result<(Part, File)> {
        if to.symlink_metadata().is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(to.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(".orangery-part");
        let path = to.with_file_name(name);
        if let Ok(left) = File::options().write(true).open(&path) {
            lock_alone(&left)?;
            fs::remove_file(&path)?;
        }
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let part = Part { path, to: to.into(), locked: file.try_clone()?, whole: false };
        lock_alone(&file)?;
        Ok((part, file))
    }

    /// Gives up the lock before it is in place: whoever opens the file now locks it by itself.
    pub fn let_go(&self, file: File) {
        unlock(&self.locked);
        drop(file);
    }

    /// Gives it its name, unless another has that meanwhile. It is on stable storage, name and all, when this returns.
    pub fn put_in_place(mut self) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let [from, name] = [&self.path, &self.to].map(|path| std::ffi::CString::new(path.as_os_str().as_bytes()));
        let (from, name, here) = (from?, name?, libc::AT_FDCWD);
        // SAFETY: both are C strings that outlive the call.
        let result = unsafe { libc::renameat2(here, from.as_ptr(), here, name.as_ptr(), libc::RENAME_NOREPLACE) };
        match io::Error::last_os_error() {
            _ if result == 0 => {}
            // A file system that can't look and rename at once.
            error if error.raw_os_error() == Some(libc::EINVAL) => fs::rename(&self.path, &self.to)?,
            error => return Err(error),
        }
        self.whole = true;
        // One that may be gone after a power cut was not made.
        sync_folder(&self.to).inspect_err(|_| drop(fs::remove_file(&self.to)))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.whole {
            let _ = fs::remove_file(&self.path);
        }
        unlock(&self.locked);
    }
}
