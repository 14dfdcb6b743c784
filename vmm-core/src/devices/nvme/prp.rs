//! Where a command's data is: physical region pages (NVM Express base 1.4 §4.3), walked with every check that the
//! specification leaves to the controller.

use super::status::Status;
use crate::base::{GuestAddress, GuestMemory};

/// Runs of guest memory; neighbours are one. Whether they are RAM is seen by who uses them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Runs(pub Vec<(GuestAddress, usize)>);

impl Runs {
    /// Appends a run.
    pub fn push(&mut self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        match self.0.last_mut() {
            Some((last, so_far)) if last.0.checked_add(*so_far as u64) == Some(address) => *so_far += len as usize,
            _ => self.0.push((GuestAddress(address), len as usize)),
        }
    }

    /// Copies bytes there.
    pub fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> Result<(), Status> {
        // All or nothing.
        self.check(memory)?;
        let mut left = bytes;
        for &(address, len) in &self.0 {
            let (now, rest) = left.split_at(len.min(left.len()));
            memory.write(address, now).map_err(|_| Status::DATA_TRANSFER)?;
            left = rest;
        }
        Ok(())
    }

    /// Copies bytes from there.
    pub fn read(&self, memory: &GuestMemory, bytes: &mut [u8]) -> Result<(), Status> {
        let mut left = bytes;
        for &(address, len) in &self.0 {
            let (now, rest) = left.split_at_mut(len.min(left.len()));
            memory.read(address, now).map_err(|_| Status::DATA_TRANSFER)?;
            left = rest;
        }
        Ok(())
    }

    fn check(&self, memory: &GuestMemory) -> Result<(), Status> {
        let mut runs = self.0.iter();
        runs.try_for_each(|&(address, len)| memory.check(address, len)).map_err(|_| Status::DATA_TRANSFER)
    }
}

/// Bytes of an entry.
const ENTRY: u64 = 8;

/// The runs that two entries and the lists behind the second describe, `len` bytes in pages of `page`.
pub(super) fn walk(memory: &GuestMemory, page: u64, [first, second]: [u64; 2], len: u64) -> Result<Runs, Status> {
    let mut runs = Runs::default();
    if len == 0 {
        return Ok(runs);
    }
    if first % 4 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    let now = len.min(page - first % page);
    runs.push(first, now);
    let mut left = len - now;
    if left == 0 {
        return Ok(runs);
    }
    if left <= page {
        if second % page != 0 {
            return Err(Status::PRP_OFFSET);
        }
        runs.push(second, left);
        return Ok(runs);
    }
    // The list may start anywhere in its page; the last entry of a page that does not hold the rest leads to the next.
    let mut list = second;
    if list % ENTRY != 0 {
        return Err(Status::PRP_OFFSET);
    }
    while left > 0 {
        let (wanted, room) = (left.div_ceil(page), (page - list % page) / ENTRY);
        let (count, leads_on) = if wanted > room { (room - 1, true) } else { (wanted, false) };
        let mut bytes = vec![0; ((count + u64::from(leads_on)) * ENTRY) as usize];
        memory.read(GuestAddress(list), &mut bytes).map_err(|_| Status::DATA_TRANSFER)?;
        let (entries, _) = bytes.as_chunks::<8>();
        let (pages, next) = entries.split_at((count as usize).min(entries.len()));
        for entry in pages {
            let address = u64::from_le_bytes(*entry);
            if address % page != 0 {
                return Err(Status::PRP_OFFSET);
            }
            let now = left.min(page);
            runs.push(address, now);
            left -= now;
        }
        if let Some(next) = next.first() {
            list = u64::from_le_bytes(*next);
            if list % page != 0 {
                return Err(Status::PRP_OFFSET);
            }
        }
    }
    Ok(runs)
}
