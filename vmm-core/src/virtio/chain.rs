//! A descriptor chain: one request. Whoever holds it must complete it; dropping it completes it with length 0.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::Fault;
use crate::base::{ByteValued, GuestAddress, GuestMemory, VolatileSlice};

/// Heads and lengths that are to go into a used ring.
pub(super) type Completions = Arc<Mutex<VecDeque<(u16, u32)>>>;

/// A run of guest RAM, checked when it was popped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: u64,
    pub len: u32,
}

/// A request of the driver: readable segments, then writable ones, all of them in RAM.
pub struct Chain {
    memory: GuestMemory,
    segments: Vec<Segment>,
    readable: usize,
    head: u16,
    completions: Option<Completions>,
}

impl Chain {
    pub(super) fn new(
        memory: GuestMemory,
        segments: Vec<Segment>,
        readable: usize,
        head: u16,
        completions: Completions,
    ) -> Chain {
        Chain { memory, segments, readable, head, completions: Some(completions) }
    }

    /// The bytes the driver wrote for the device.
    pub fn reader(&self) -> Reader<'_> {
        Reader(Cursor::new(&self.memory, &self.segments[..self.readable]))
    }

    /// The room the driver left for the device's answer.
    pub fn writer(&self) -> Writer<'_> {
        Writer(Cursor::new(&self.memory, &self.segments[self.readable..]))
    }

    /// Completes the request: `written` bytes from the start of the writable part were written.
    pub fn complete(mut self, written: u32) {
        self.push(written);
    }

    fn push(&mut self, written: u32) {
        if let Some(completions) = self.completions.take() {
            completions.lock().unwrap_or_else(PoisonError::into_inner).push_back((self.head, written));
        }
    }

    /// Forgets the chain without completing it, for it goes back to its queue; its head.
    pub(super) fn forget(mut self) -> u16 {
        self.completions = None;
        self.head
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.push(0);
    }
}

/// A place in a list of segments.
#[derive(Clone)]
struct Cursor<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind the cursor.
    offset: u32,
    passed: usize,
}

impl<'a> Cursor<'a> {
    fn new(memory: &'a GuestMemory, segments: &'a [Segment]) -> Cursor<'a> {
        Cursor { memory, segments, offset: 0, passed: 0 }
    }

    fn remaining(&self) -> usize {
        self.segments.iter().map(|s| s.len as usize).sum::<usize>() - self.offset as usize
    }

    /// The next run of at most `limit` bytes; the cursor moves behind it.
    fn next(&mut self, limit: usize) -> Result<Option<VolatileSlice<'a>>, Fault> {
        while let Some(segment) = self.segments.first() {
            let left = (segment.len - self.offset) as usize;
            if left == 0 {
                self.segments = &self.segments[1..];
                self.offset = 0;
                continue;
            }
            let len = left.min(limit);
            if len == 0 {
                return Ok(None);
            }
            let slice = self.memory.slice(GuestAddress(segment.address + u64::from(self.offset)), len)?;
            self.offset += len as u32;
            self.passed += len;
            return Ok(Some(slice));
        }
        Ok(None)
    }

    fn advance(&mut self, mut len: usize) -> Result<(), Fault> {
        while len > 0 {
            let Some(slice) = self.next(len)? else { return Err(Fault::Request("a request is shorter than its kind")) };
            len -= slice.len();
        }
        Ok(())
    }

    fn runs(&mut self, mut len: usize) -> Result<Vec<(GuestAddress, usize)>, Fault> {
        if len > self.remaining() {
            return Err(Fault::Request("a request is shorter than its kind"));
        }
        let mut runs = Vec::with_capacity(self.segments.len());
        while len > 0
            && let Some(slice) = self.next(len)?
        {
            len -= slice.len();
            let end = self.segments[0].address + u64::from(self.offset);
            runs.push((GuestAddress(end - slice.len() as u64), slice.len()));
        }
        Ok(runs)
    }

    fn slices(&mut self, mut len: usize) -> Result<Vec<VolatileSlice<'a>>, Fault> {
        if len > self.remaining() {
            return Err(Fault::Request("a request is shorter than its kind"));
        }
        let mut slices = Vec::new();
        while len > 0
            && let Some(slice) = self.next(len)?
        {
            len -= slice.len();
            slices.push(slice);
        }
        Ok(slices)
    }
}

/// Reads the readable part of a chain, front to back.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Reads as much as there is, and says how many bytes.
    pub fn read(&mut self, data: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while let Some(slice) = self.0.next(data.len() - done)? {
            slice.copy_to(&mut data[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(done)
    }

    /// Fills `data`; a chain that ends before is the driver's fault.
    pub fn read_exact(&mut self, data: &mut [u8]) -> Result<(), Fault> {
        if self.read(data)? == data.len() { Ok(()) } else { Err(Fault::Request("a request is shorter than its kind")) }
    }

    /// Reads a plain value.
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, Fault> {
        let mut value = T::zeroed();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// Passes over bytes.
    pub fn skip(&mut self, len: usize) -> Result<(), Fault> {
        self.0.advance(len)
    }

    /// Where in guest RAM the next `len` bytes are, for I/O that goes on after the call.
    pub fn runs(&mut self, len: usize) -> Result<Vec<(GuestAddress, usize)>, Fault> {
        self.0.runs(len)
    }

    /// The next `len` bytes where they are, for I/O without a copy.
    pub fn slices(&mut self, len: usize) -> Result<Vec<VolatileSlice<'a>>, Fault> {
        self.0.slices(len)
    }
}

/// Writes the writable part of a chain, front to back.
#[derive(Clone)]
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
    /// Room left, bytes.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Bytes written and passed over so far: the length to complete the chain with.
    pub fn written(&self) -> u32 {
        u32::try_from(self.0.passed).unwrap_or(u32::MAX)
    }

    /// Writes as much as there is room for, and says how many bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while let Some(slice) = self.0.next(data.len() - done)? {
            slice.copy_from(&data[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(done)
    }

    /// Writes all of `data`; a chain with less room is the driver's fault.
    pub fn write_all(&mut self, data: &[u8]) -> Result<(), Fault> {
        if self.write(data)? == data.len() {
            Ok(())
        } else {
            Err(Fault::Request("a request has no room for its answer"))
        }
    }

    /// Writes a plain value.
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> Result<(), Fault> {
        self.write_all(value.as_slice())
    }

    /// Passes over room.
    pub fn skip(&mut self, len: usize) -> Result<(), Fault> {
        self.0.advance(len)
    }

    /// Where in guest RAM the next `len` bytes of room are, for I/O that goes on after the call.
    pub fn runs(&mut self, len: usize) -> Result<Vec<(GuestAddress, usize)>, Fault> {
        self.0.runs(len)
    }

    /// The next `len` bytes of room where they are, for I/O without a copy.
    pub fn slices(&mut self, len: usize) -> Result<Vec<VolatileSlice<'a>>, Fault> {
        self.0.slices(len)
    }
}
