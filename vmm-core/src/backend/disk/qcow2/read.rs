//! How a qcow2 disk reads: through the chain, with tables and compressed clusters loaded on the way.

use std::io::Read;
use std::sync::Arc;

use super::format::Compression;
use super::layer::Kind;
use super::table::Found;
use super::{Active, INFLATED, Key, Next, Qcow2Disk, Tag};
use crate::backend::disk::buffers::Scratch;
use crate::backend::disk::job::Job;
use crate::backend::disk::{Buffers, DiskError};

/// Where bytes are, after all layers were asked.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    Zero,
    Data { layer: usize, at: u64 },
    Packed { layer: usize, entry: u64 },
}

impl Qcow2Disk {
    /// Where the bytes from `offset` on are, at most `len`, seen from the layer `from`; or what must be loaded first.
    pub(super) fn resolve(
        &mut self,
        from: usize,
        offset: u64,
        len: u64,
    ) -> Result<Result<(Place, u64), Key>, DiskError> {
        let mut len = len;
        for (layer, image) in self.layers.iter_mut().enumerate().skip(from) {
            let Some(inside) = image.size.checked_sub(offset).filter(|left| *left > 0) else {
                // The image below is shorter than the disk.
                return Ok(Ok((Place::Zero, len)));
            };
            match image.find(offset, len.min(inside))? {
                Found::Data { at, len, .. } => return Ok(Ok((Place::Data { layer, at }, len))),
                Found::Zero { len } => return Ok(Ok((Place::Zero, len))),
                Found::Packed { entry, len } => return Ok(Ok((Place::Packed { layer, entry }, len))),
                Found::Missing(slice) => return Ok(Err(Key::Slice { layer, slice })),
                Found::Hole { len: hole } => len = hole,
            }
        }
        Ok(Ok((Place::Zero, len)))
    }

    pub(super) fn read_step(&mut self, slot: usize, request: &mut Active) -> Result<Next, DiskError> {
        let (offset, left) = (request.offset, request.end - request.offset);
        let (place, len) = match self.resolve(0, offset, left)? {
            Ok(found) => found,
            Err(key) => return Ok(self.park(slot, key)),
        };
        let inflated = match place {
            Place::Packed { layer, entry } => {
                let key = Key::Packed { layer, entry };
                match self.inflated.iter().find(|(k, _)| *k == key) {
                    Some((_, bytes)) => Some(bytes.clone()),
                    None => return Ok(self.park(slot, key)),
                }
            }
            _ => None,
        };
        let mut part = take(request, len)?;
        match (place, inflated) {
            (Place::Data { layer, at }, _) => {
                request.jobs += 1;
                self.pool.start(Tag::Part(slot), &self.layers[layer].image, Job::read(at, part));
            }
            (Place::Packed { .. }, Some(bytes)) => {
                // Clusters are powers of two, and `offset` is inside this one.
                let within = offset as usize & (bytes.len() - 1);
                part.copy_from(&bytes[within..within + len as usize]);
            }
            _ => part.fill_zero(),
        }
        Ok(Next::Step)
    }

    /// Has a request wait for what is to be loaded.
    pub(super) fn park(&mut self, slot: usize, key: Key) -> Next {
        let waiting = self.parked.entry(key).or_default();
        waiting.push(slot);
        if waiting.len() == 1 {
            self.load(key);
        }
        Next::Wait
    }

    /// Loads a part of a table while nothing else is on its way.
    pub(super) fn load_now(&mut self, key: Key) -> Result<(), DiskError> {
        self.load(key);
        self.run_to_rest();
        self.load_failed.take().map_or(Ok(()), Err)
    }

    fn load(&mut self, key: Key) {
        let (layer, at, len) = match key {
            Key::Slice { layer, slice } => {
                let map = self.layers[layer].map();
                map.map_or((layer, 0, 0), |m| (layer, m.slice_offset(slice).unwrap_or(0), m.slice_bytes()))
            }
            Key::Packed { layer, entry } => {
                let (at, len) = self.layers[layer].map().map_or((0, 0), |m| m.packed(entry));
                (layer, at, len)
            }
        };
        // Past the page cache only whole sectors can be read, and any sector may be compressed data's first.
        let start = at & !511;
        let len = (at - start) as usize + len;
        let scratch = Arc::new(Scratch::new(len.next_multiple_of(512)));
        let job = Job::read(start, Buffers::own(&scratch, len.next_multiple_of(512)));
        self.pool.start(Tag::Load(key, scratch), &self.layers[layer].image, job);
    }

    /// What requests wait for has come, or not.
    pub(super) fn loaded(&mut self, key: Key, scratch: Arc<Scratch>, result: Result<(), DiskError>) {
        let result = result.and_then(|()| self.take_in(key, scratch));
        let waiting = self.parked.remove(&key).unwrap_or_default();
        let waited = !waiting.is_empty();
        for slot in waiting {
            if let Err(error) = &result
                && let Some(Some(request)) = self.requests.get_mut(slot)
            {
                request.failed.get_or_insert(error.again());
            }
            self.advance(slot);
        }
        if !waited {
            self.load_failed = result.err();
        }
    }

    fn take_in(&mut self, key: Key, scratch: Arc<Scratch>) -> Result<(), DiskError> {
        let Ok(mut scratch) = Arc::try_unwrap(scratch) else {
            return Err(DiskError::Damaged("a table was read twice at once"));
        };
        let bytes = scratch.bytes();
        match key {
            Key::Slice { layer, slice } => {
                if let Kind::Qcow2(_, map) = &mut self.layers[layer].kind {
                    map.insert(slice, Some(bytes));
                }
                let checked = if layer == 0 { self.check_slice(slice) } else { Ok(()) };
                if let (Err(_), Kind::Qcow2(_, map)) = (&checked, &mut self.layers[layer].kind) {
                    map.remove(slice);
                }
                checked
            }
            Key::Packed { layer, entry } => {
                let Kind::Qcow2(header, map) = &mut self.layers[layer].kind else { return Ok(()) };
                let compression = header.compression;
                let (at, len) = map.packed(entry);
                let from = (at & 511) as usize;
                let bytes = inflate(&bytes[from..from + len], map.cluster() as usize, compression)?;
                if self.inflated.len() >= INFLATED {
                    self.inflated.pop_front();
                }
                self.inflated.push_back((key, bytes));
                Ok(())
            }
        }
    }
}

/// The next `len` bytes of a request's buffers.
pub(super) fn take(request: &mut Active, len: u64) -> Result<Buffers, DiskError> {
    let all = request.buffers.take().ok_or(DiskError::OutOfRange)?;
    request.offset += len;
    if request.offset >= request.end {
        return Ok(all);
    }
    let (part, rest) = all.split(len);
    request.buffers = Some(rest);
    Ok(part)
}

/// Inflates a compressed cluster.
pub(super) fn inflate(packed: &[u8], cluster: usize, by: Compression) -> Result<Arc<[u8]>, DiskError> {
    let mut bytes = vec![0; cluster];
    if by == Compression::Zstd {
        // What is behind the frame, to the end of its last sector, is not looked at.
        let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
        let mut decoder = decoder.map_err(|_| DiskError::Damaged("a compressed cluster can't be inflated"))?;
        let filled = decoder.read_exact(&mut bytes);
        filled.map_err(|_| DiskError::Damaged("a compressed cluster can't be inflated"))?;
        return Ok(bytes.into());
    }
    let mut inflater = flate2::Decompress::new(false);
    // The compressed bytes end somewhere in their last sector; what counts is that the cluster is full.
    let result = inflater.decompress(packed, &mut bytes, flate2::FlushDecompress::Finish);
    if inflater.total_out() as usize == cluster {
        return Ok(bytes.into());
    }
    result.map_err(|_| DiskError::Damaged("a compressed cluster can't be inflated"))?;
    Err(DiskError::Damaged("a compressed cluster is too short"))
}
