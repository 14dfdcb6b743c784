//! What a network card sees of the network: frames in and out, each behind the header that tells of checksums and
//! segments still to be made (virtio 1.2 §5.1.6).

#[cfg(any(test, feature = "testkit"))]
#[allow(clippy::expect_used)]
mod fake;
mod tap;
mod unplugged;

use std::io;
use std::os::fd::RawFd;

#[cfg(any(test, feature = "testkit"))]
pub use fake::{FakeNet, Wire};
pub use tap::{Tap, TapError};
pub use unplugged::Unplugged;

use crate::base::VolatileSlice;

/// Bytes of the header before each frame: struct virtio_net_hdr with its count of buffers.
pub const HEADER: usize = 12;
/// The longest frame with its header: 64 KiB of segments to be made, behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = HEADER + 18 + 65535;

/// Work on frames that is left to the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Checksums that are not there yet.
    pub checksum: bool,
    /// TCP over IPv4 that is not segmented yet.
    pub tso4: bool,
    /// TCP over IPv6 that is not segmented yet.
    pub tso6: bool,
    /// UDP that is not segmented yet.
    pub uso: bool,
}

/// A network card's place in a network.
pub trait NetPort: Send {
    /// The offloads that both ways can have.
    fn supports(&self) -> Offloads;

    /// Tells which offloads received frames may have.
    fn accept(&mut self, offloads: Offloads) -> io::Result<()>;

    /// The largest payload of a frame, bytes, if the network has one of its own.
    fn mtu(&self) -> Option<u16>;

    /// Whether there is a network at all.
    fn is_plugged(&self) -> bool {
        true
    }

    /// Receives a frame behind its header into `buffer` ([`MAX_FRAME`] bytes), and says how long both are; `None`:
    /// there is none now.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends a frame. False: there is no room now; [`NetPort::writable`] tells when it is worth trying again.
    fn send(&mut self, header: &[u8; HEADER], frame: &[VolatileSlice<'_>]) -> io::Result<bool>;

    /// A descriptor that is readable when frames came in.
    fn readable(&self) -> RawFd;

    /// A descriptor that becomes readable when there is room again after [`NetPort::send`] had none.
    fn writable(&self) -> RawFd;
}
