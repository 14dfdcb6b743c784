//! Makes the virtual disk of a qcow2 image larger.

use super::Qcow2Disk;
use super::flush::patched_header;
use super::format::{MAX_L1_BYTES, MAX_SIZE};
use super::piece::Piece;
use super::table::Map;
use crate::backend::disk::job::Job;
use crate::backend::disk::{Disk, DiskError};

impl Qcow2Disk {
    /// Makes the disk larger; what is added reads as zeroes. Nothing may be in flight. Whenever power fails, it has the
    /// old size or the new one. After a failure it is only read.
    pub fn grow(&mut self, size: u64) -> Result<(), DiskError> {
        let size = size.next_multiple_of(512);
        if size < self.geometry.size || size > MAX_SIZE {
            return Err(DiskError::OutOfRange);
        }
        self.settle()?;
        let enlarged = self.enlarge(size);
        if enlarged.is_err() {
            // What it took of the file may be counted and not used. It is left as if the power had failed: whoever opens it
            // next takes that back.
            self.writer = None;
        }
        enlarged
    }

    fn enlarge(&mut self, size: u64) -> Result<(), DiskError> {
        let Some(mut header) = self.layers.first().and_then(|top| top.header()).cloned() else {
            return Err(DiskError::ReadOnly);
        };
        header.size = size;
        let needed = header.l1_needed();
        if needed * 8 > MAX_L1_BYTES {
            return Err(DiskError::OutOfRange);
        }
        let (image, map, writer) = self.top()?;
        let image = image.clone();
        let mut l1 = map.l1.clone();
        let mut moved = None;
        if needed > u64::from(header.l1_entries) {
            // A new table elsewhere, with room for more.
            let cluster = map.cluster();
            let old = (header.l1_offset >> map.cluster_bits, (u64::from(header.l1_entries) * 8).div_ceil(cluster));
            let run = writer.refs.allocate_exactly((needed * 8).div_ceil(cluster))?;
            writer.extend(&image, map.cluster_bits)?;
            moved = Some((old, run));
            l1.resize((run.count * cluster / 8) as usize, 0);
            header.l1_offset = run.start << map.cluster_bits;
            header.l1_entries = needed as u32;
            let bytes: Vec<u8> = l1.iter().flat_map(|l1| l1.to_be_bytes()).collect();
            self.run_job(&image, Piece::new(header.l1_offset, &bytes).job())?;
        } else {
            l1.resize(needed as usize, 0);
        }
        // The refcounts, and the new table before the header names it.
        self.flush_now()?;
        let piece = patched_header(&image, |sector| {
            sector[24..32].copy_from_slice(&size.to_be_bytes());
            sector[36..40].copy_from_slice(&header.l1_entries.to_be_bytes());
            sector[40..48].copy_from_slice(&header.l1_offset.to_be_bytes());
        })?;
        self.run_job(&image, piece.job())?;
        self.run_job(&image, Job::sync())?;
        let new = Map::new(&header, l1);
        if let Some(top) = self.layers.first_mut() {
            top.size = size;
            top.kind = super::layer::Kind::Qcow2(Box::new(header), new);
        }
        self.geometry.size = size;
        if let Some((old, run)) = moved {
            self.top()?.2.move_table(old, run);
        }
        self.settle()
    }
}
