//! The control socket: how a manager or a command reaches the process that runs a machine.
//!
//! `$XDG_RUNTIME_DIR/orangery/<id>.sock` speaks the lines of [`protocol`]; [`Client`] asks, [`server`] answers. A socket
//! that is there proves nothing: the lock in the machine's folder says whether it runs ([`crate::library::lock`]).

mod client;
pub mod keys;
pub mod protocol;
pub mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use client::{Attached, Client, ControlError, Events, Screenshot};
pub use protocol::{Event, Power, State, Stream};

/// Where the sockets of this person are: `orangery/` in `$XDG_RUNTIME_DIR`, else in `/run/user/UID`, else in
/// `/tmp/orangery-UID`. Made where it is missing; for its owner alone.
///
/// # Errors
/// It cannot be made, or somebody else owns it.
pub fn runtime_folder() -> io::Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute() && p.is_dir());
    let user = PathBuf::from(format!("/run/user/{uid}"));
    let base = session.or_else(|| Some(user).filter(|p| p.metadata().is_ok_and(|m| m.uid() == uid)));
    let folder = match base {
        Some(base) => base.join("orangery"),
        None => {
            let base = PathBuf::from(format!("/tmp/orangery-{uid}"));
            own_folder(&base, uid)?;
            base.join("run")
        }
    };
    own_folder(&folder, uid)?;
    Ok(folder)
}

/// Makes a folder for this person alone, and refuses one that another made first.
fn own_folder(folder: &Path, uid: u32) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(folder)?;
    if !meta.is_dir() || meta.uid() != uid {
        let text = format!("{} belongs to somebody else; remove it or set XDG_RUNTIME_DIR", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if meta.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The socket's name in the runtime folder.
fn socket_name(id: &str) -> String {
    format!("{id}.sock")
}

/// A path to `folder/name` that fits into a `sockaddr_un` however long the folder's is: it goes through the folder's
/// descriptor, which must stay open while the path is used.
fn socket_path(folder: &Path, name: &str) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    use std::os::fd::AsRawFd;
    /// `sizeof(sun_path)` less its NUL.
    const LONGEST: usize = 107;
    let direct = folder.join(name);
    if direct.as_os_str().len() <= LONGEST {
        return Ok((direct, None));
    }
    let opened = std::fs::File::open(folder)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd())), Some(opened)))
}
