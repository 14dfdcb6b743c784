//! A two-way byte stream between a character device (16550, virtio-console, debug port) and whoever listens on the
//! host: a terminal, a log, a test. Both directions are bounded and neither end ever waits for the other.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that wait in one direction before the writer is told that there is no room.
const CAPACITY: usize = 64 * 1024;

struct Pipe {
    ring: Mutex<VecDeque<u8>>,
    readable: EventFd,
    writable: EventFd,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        Ok(Pipe {
            ring: Mutex::default(),
            readable: EventFd::new(EFD_NONBLOCK)?,
            writable: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn write(&self, bytes: &[u8]) -> usize {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = bytes.len().min(CAPACITY - ring.len());
        ring.extend(&bytes[..taken]);
        drop(ring);
        if taken > 0 {
            let _ = self.readable.write(1);
        }
        taken
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let was_full = ring.len() == CAPACITY;
        let count = buffer.len().min(ring.len());
        for (to, from) in buffer.iter_mut().zip(ring.drain(..count)) {
            *to = from;
        }
        drop(ring);
        if was_full && count > 0 {
            let _ = self.writable.write(1);
        }
        count
    }

    fn room(&self) -> usize {
        CAPACITY - self.ring.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// One end of a stream; clones share the end.
#[derive(Clone)]
pub struct CharPort {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
}

impl CharPort {
    /// Two connected ends. Fails when the host is out of file descriptors.
    pub fn pair() -> io::Result<(CharPort, CharPort)> {
        let (a, b) = (Arc::new(Pipe::new()?), Arc::new(Pipe::new()?));
        Ok((CharPort { incoming: a.clone(), outgoing: b.clone() }, CharPort { incoming: b, outgoing: a }))
    }

    /// Sends what there is room for, and says how many bytes that was.
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.outgoing.write(bytes)
    }

    /// Receives what is there into `buffer`, and says how many bytes that was.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.incoming.read(buffer)
    }

    /// How many bytes [`CharPort::write`] would take now.
    pub fn room(&self) -> usize {
        self.outgoing.room()
    }

    /// Whether bytes wait to be read.
    pub fn has_input(&self) -> bool {
        self.incoming.room() < CAPACITY
    }

    /// Resets the readiness of the port's descriptor; call it before reading until 0 bytes come.
    pub fn acknowledge(&self) {
        let _ = self.incoming.readable.read();
    }

    /// A descriptor that is readable when a full outgoing ring got room again; reset by reading it.
    pub fn writable(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives in the Arc that self keeps alive for the borrow.
        unsafe { BorrowedFd::borrow_raw(self.outgoing.writable.as_raw_fd()) }
    }

    /// Resets the readiness of [`CharPort::writable`].
    pub fn acknowledge_writable(&self) {
        let _ = self.outgoing.writable.read();
    }
}

impl AsFd for CharPort {
    /// Readable when bytes came in since the last [`CharPort::acknowledge`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives in the Arc that self keeps alive for the borrow.
        unsafe { BorrowedFd::borrow_raw(self.incoming.readable.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_both_ways_in_order() {
        let (a, b) = CharPort::pair().unwrap();
        assert_eq!(a.write(b"hello"), 5);
        assert_eq!(b.write(b"there"), 5);
        let mut buffer = [0; 8];
        assert_eq!((b.read(&mut buffer), &buffer[..5]), (5, &b"hello"[..]));
        assert_eq!((a.read(&mut buffer), &buffer[..5]), (5, &b"there"[..]));
        assert_eq!(a.read(&mut buffer), 0);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_tells_when_there_is_room() {
        let (a, b) = CharPort::pair().unwrap();
        assert_eq!(a.write(&vec![1; CAPACITY + 7]), CAPACITY);
        assert_eq!((a.room(), a.write(b"x")), (0, 0));
        assert!(a.outgoing.writable.read().is_err());
        assert_eq!(b.read(&mut [0; 16]), 16);
        assert!(a.outgoing.writable.read().is_ok());
        assert_eq!(a.room(), 16);
    }
}
