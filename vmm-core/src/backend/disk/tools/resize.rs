//! Makes the virtual disk of an image larger.

use std::path::Path;

use super::ToolError;
use crate::backend::disk::image::{Image, OpenOptions};
use crate::backend::disk::open::{Format, detect};
use crate::backend::disk::qcow2::Qcow2Disk;
use crate::backend::disk::{Disk, SECTOR};

/// Makes a disk larger; what is added reads as zeroes. It is never made smaller: a guest's data could be there.
pub fn grow(path: &Path, size: u64) -> Result<(), ToolError> {
    let size = size.checked_next_multiple_of(SECTOR).unwrap_or(size);
    let options = OpenOptions { readonly: false, direct: false };
    let check = |now: u64| match size < now {
        true => Err(ToolError::Refused(format!(
            "{} has {now} bytes, and a disk is never made smaller: the guest's data could be there; make a new, smaller one and copy in the guest",
            path.display()
        ))),
        false => Ok(()),
    };
    match detect(path)? {
        Format::Raw => {
            let image = Image::open(path, options)?;
            check(image.length)?;
            if image.is_block_device {
                return Err(ToolError::Refused(format!(
                    "{} is a block device: its size is the device's",
                    path.display()
                )));
            }
            let host = |source| ToolError::Host { action: "enlarge", path: path.into(), source };
            image.extend(size).map_err(host)?;
            image.file().sync_all().map_err(host)
        }
        Format::Qcow2 => {
            let mut disk = Qcow2Disk::open(path, options)?;
            check(disk.geometry().size)?;
            disk.grow(size).map_err(|source| ToolError::Disk { action: "enlarge", path: path.into(), source })
        }
    }
}
