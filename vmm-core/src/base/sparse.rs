//! Files with holes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The unit in which data is told from holes, bytes.
const SECTOR: u64 = 512;
/// What is copied at once, bytes.
const BLOCK: u64 = 1 << 20;

/// Whether a file has data at an offset, and for how many bytes, of the `left` that are asked about, that is so.
pub fn data_at(file: &File, offset: u64, left: u64) -> (bool, u64) {
    // SAFETY: the calls only move the position of an open descriptor, which nothing here uses.
    let next = |whence| unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    let data = next(libc::SEEK_DATA);
    if data < 0 {
        // Nothing follows, or the host can't tell.
        let no_data = io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
        return (!no_data, left);
    }
    if data as u64 > offset {
        return (false, (data as u64 - offset).min(left));
    }
    let hole = next(libc::SEEK_HOLE);
    let len = if hole < 0 { left } else { (hole as u64).saturating_sub(offset).clamp(1, left) };
    (true, len.next_multiple_of(SECTOR).min(left))
}

/// Copies a file to `to`, where nothing may be yet, its holes as holes, and makes it durable.
///
/// # Errors
/// Those of the file system; part of the copy may be there then.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < length {
        let (data, count) = data_at(&source, at, length - at);
        let end = at + count;
        if !data {
            at = end;
        }
        while at < end {
            let part = &mut block[..(end - at).min(BLOCK) as usize];
            source.read_exact_at(part, at)?;
            target.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    target.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, byte) in [(0, 1u8), (5 << 20, 2), ((64 << 20) - 3, 3)] {
            file.write_all_at(&[byte; 3], at).unwrap();
        }
        copy_sparse(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let used = std::fs::metadata(&to).unwrap().blocks() * 512;
        assert!(used < 1 << 20, "{used} bytes are used");
        // Nothing is overwritten.
        assert_eq!(copy_sparse(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
