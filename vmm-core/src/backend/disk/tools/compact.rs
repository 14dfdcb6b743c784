//! Gives the space back to the host that an image takes and does not need: free clusters, and data that is all zeroes. It
//! works in place, in steps of which each leaves the disk as the guest knows it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::convert::is_zero;
use super::{CHUNK, Job, ToolError};
use crate::backend::disk::image::{Image, OpenOptions};
use crate::backend::disk::open::{Format, detect};
use crate::backend::disk::qcow2::{Extent, Qcow2Disk, perform};
use crate::backend::disk::{Buffers, Disk, Request, Scratch};
use crate::base::data_at;

/// The unit in which a raw image is looked at, bytes.
const BLOCK: u64 = 64 << 10;

/// Compacts an image, and says how many bytes of the host it took before and takes now.
pub fn compact(path: &Path, job: &mut Job<'_>) -> Result<(u64, u64), ToolError> {
    let host = |source| ToolError::Host { action: "look at", path: path.into(), source };
    let size = || std::fs::metadata(path).map(|m| m.blocks() * 512).map_err(host);
    let before = size()?;
    match detect(path)? {
        Format::Raw => compact_raw(path, job)?,
        Format::Qcow2 => compact_qcow2(path, job)?,
    }
    Ok((before, size()?))
}

fn compact_raw(path: &Path, job: &mut Job<'_>) -> Result<(), ToolError> {
    let host = |action| move |source| ToolError::Host { action, path: path.into(), source };
    // For its lock.
    let image = Image::open(path, OpenOptions { readonly: false, direct: false })?;
    if image.is_block_device {
        return Err(ToolError::Refused(format!("{} is a block device: there is nothing to give back", path.display())));
    }
    let file = File::options().read(true).write(true).open(path).map_err(host("open"))?;
    let (mut offset, mut bytes) = (0, vec![0; BLOCK as usize]);
    while offset < image.length {
        job.at(offset, image.length)?;
        let (data, len) = data_at(&file, offset, image.length - offset);
        if !data {
            offset += len;
            continue;
        }
        let start = offset / BLOCK * BLOCK;
        let now = BLOCK.min(image.length - start);
        if is_zero(&file, start, &mut bytes[..now as usize]).map_err(host("read"))? {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: plain numbers on an open descriptor.
            if unsafe { libc::fallocate(file.as_raw_fd(), mode, start as libc::off_t, now as libc::off_t) } < 0 {
                return Err(host("give space back from")(std::io::Error::last_os_error()));
            }
        }
        offset = start + now;
    }
    file.sync_all().map_err(host("write"))?;
    job.at(image.length, image.length)
}

fn compact_qcow2(path: &Path, job: &mut Job<'_>) -> Result<(), ToolError> {
    let failed = |action| move |source| ToolError::Disk { action, path: path.into(), source };
    let mut disk = Qcow2Disk::open(path, OpenOptions { readonly: false, direct: false })?;
    let (size, cluster) = (disk.geometry().size, u64::from(disk.geometry().discard_granularity));
    let mut scratch = Arc::new(Scratch::new(CHUNK.max(cluster) as usize));
    let mut offset = 0;
    while offset < size {
        job.at(offset, size)?;
        let (extent, len) = disk.extent(offset).map_err(failed("read"))?;
        if extent != Extent::Data {
            offset += len;
            continue;
        }
        let now = len.min(CHUNK.max(cluster));
        let request = Request::Read { offset, buffers: Buffers::own(&scratch, now as usize) };
        perform(&mut disk, request).map_err(failed("read"))?;
        let Some(bytes) = Arc::get_mut(&mut scratch).map(Scratch::bytes) else { break };
        let zero = |at: u64| bytes[at as usize..(at + cluster).min(now) as usize].iter().all(|byte| *byte == 0);
        let zeroes: Vec<u64> = (0..now).step_by(cluster as usize).filter(|at| zero(*at)).collect();
        for at in zeroes {
            let request =
                Request::WriteZeroes { offset: offset + at, len: cluster.min(now - at), unmap: true, durable: false };
            perform(&mut disk, request).map_err(failed("write"))?;
        }
        offset += now;
    }
    disk.punch_free().map_err(failed("give space back from"))?;
    disk.settle().map_err(failed("write"))?;
    job.at(size, size)
}
