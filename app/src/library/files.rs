//! Files that are whole or not there: atomic replacement, and sparse disk images that never overwrite anything.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Replaces the file at `path` with `bytes`: readers see the old or the new one, also after a power cut.
///
/// # Errors
/// Those of the file system; the old file is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", random_hex()?));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder)
}

/// Removes from `folder` what [`write_atomic`], or whoever makes an image, was writing when its process was killed, if it is at
/// least as old as `age` says by its name.
///
/// # Errors
/// Those of the file system.
pub fn remove_temporaries(folder: &Path, age: impl Fn(&str) -> Duration) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_temporary(name)) else { continue };
        let age = age(name);
        let written = entry.metadata().and_then(|meta| meta.modified());
        if age.is_zero() || written.is_ok_and(|then| then.elapsed().is_ok_and(|elapsed| elapsed >= age)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file has a name that only one that is not finished has.
fn is_temporary(name: &str) -> bool {
    let random = |text: &str| text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
    let Some((rest, ending)) = name.strip_prefix('.').and_then(|name| name.rsplit_once('.')) else { return false };
    !rest.is_empty() && (random(ending) || ending == "orangery-part")
}

/// Makes the entries of `folder` durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The files in a folder; none where there is no folder.
pub fn of(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Makes a sparse raw disk image of `size` bytes: it reads as zeros and takes no space until it is written.
///
/// # Errors
/// Something is at `path` already, or the file system refuses the size.
pub fn create_sparse(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let sized = file.set_len(size).and_then(|()| file.sync_all());
    if sized.is_err() {
        let _ = std::fs::remove_file(path);
    }
    sized
}

/// 128 random bits as 32 hexadecimal digits.
///
/// # Errors
/// The host has no `/dev/urandom`.
pub fn random_hex() -> io::Result<String> {
    Ok(random_bytes()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// 128 random bits.
///
/// # Errors
/// The host has no `/dev/urandom`.
pub fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_no_temporary_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.toml");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.toml");
        std::fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"one").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_was_writing_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = format!(".machine.toml.{}", random_hex().unwrap());
        let all =
            [temporary.as_str(), ".disk-0-1.qcow2.orangery-part", ".notes", ".a.b", "machine.toml", ".orangery-part"];
        all.iter().for_each(|name| std::fs::write(dir.path().join(name), "x").unwrap());
        remove_temporaries(dir.path(), |_| Duration::from_secs(3600)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), all.len());
        remove_temporaries(dir.path(), |_| Duration::ZERO).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.len() == 4 && !left.contains(&temporary.into()), "{left:?}");
    }

    #[test]
    fn a_new_disk_is_sparse_and_never_overwrites() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        create_sparse(&path, 1 << 30).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() < 64);
        assert_eq!(create_sparse(&path, 5).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
    }

    #[test]
    fn ids_are_128_bits_and_differ() {
        let (a, b) = (random_hex().unwrap(), random_hex().unwrap());
        assert!(a.len() == 32 && a.bytes().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }
}
