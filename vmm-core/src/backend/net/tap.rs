//! A tap interface of the host (Linux `Documentation/networking/tuntap.rst`).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_ulong, iovec};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{HEADER, NetPort, Offloads};
use crate::base::VolatileSlice;

const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUNSETVNETLE: c_ulong = 0x4004_54dc;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUN_F_CSUM: c_ulong = 0x01;
const TUN_F_TSO4: c_ulong = 0x02;
const TUN_F_TSO6: c_ulong = 0x04;
const TUN_F_USO: c_ulong = 0x20 | 0x40;

/// Why a tap can't be used. Each names the interface.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no such interface.
    #[error("the host has no network interface {0:?}; make it with: sudo ip tuntap add dev {0} mode tap user $USER")]
    Missing(String),
    /// Another machine has it.
    #[error("the tap interface {0:?} is in use by another machine or program")]
    InUse(String),
    /// It belongs to someone else, or is no tap.
    #[error("the network interface {0:?} is no tap interface of yours")]
    Forbidden(String),
    /// The host failed.
    #[error("could not {action} the tap interface {name:?}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// See the module.
pub struct Tap {
    file: File,
    supports: Offloads,
    mtu: Option<u16>,
    /// Waits for room to send, and is itself readable when there is.
    room: Epoll,
}

/// struct ifreq: a name, and what a request is about.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl InterfaceRequest {
    /// A request about an interface whose name fits.
    fn new(name: &str, value: &[u8]) -> InterfaceRequest {
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request.value[..value.len()].copy_from_slice(value);
        request
    }

    /// Makes the request.
    fn send(&mut self, fd: RawFd, what: c_ulong) -> io::Result<()> {
        // SAFETY: the kernel reads and writes one struct ifreq, 40 bytes, which lives here.
        match unsafe { libc::ioctl(fd, what, self as *mut InterfaceRequest) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether there is an interface of this name.
fn exists(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ;
    // SAFETY: the name is a C string that lives for the call.
    fits && CString::new(name).is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

/// A socket to ask about interfaces.
fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    match unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) } {
        fd if fd < 0 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor was just made and nothing else owns it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn mtu(name: &str) -> Option<u16> {
    let mut request = InterfaceRequest::new(name, &[]);
    request.send(socket().ok()?.as_raw_fd(), libc::SIOCGIFMTU).ok()?;
    let [a, b, c, d, ..] = request.value;
    u16::try_from(i32::from_ne_bytes([a, b, c, d])).ok()
}

impl Tap {
    /// Attaches to an existing tap interface.
    pub fn open(name: &str) -> Result<Tap, TapError> {
        let host = |action| move |source| TapError::Host { action, name: name.into(), source };
        // Attaching to a name that does not exist would make an interface, for those who may.
        if !exists(name) {
            return Err(TapError::Missing(name.into()));
        }
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").map_err(host("open /dev/net/tun for"))?;
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if let Err(error) = InterfaceRequest::new(name, &flags.to_ne_bytes()).send(file.as_raw_fd(), TUNSETIFF) {
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => TapError::InUse(name.into()),
                Some(libc::EPERM | libc::EINVAL) => TapError::Forbidden(name.into()),
                _ => host("attach to")(error),
            });
        }
        let set = |what: c_ulong, value: c_int| {
            // SAFETY: both of these ioctls read one int, which lives here.
            match unsafe { libc::ioctl(file.as_raw_fd(), what, &raw const value) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        set(TUNSETVNETHDRSZ, HEADER as c_int).map_err(host("set up"))?;
        set(TUNSETVNETLE, 1).map_err(host("set up"))?;
        let room = Epoll::new().map_err(host("wait for"))?;
        let idle = EpollEvent::new(EventSet::ONE_SHOT, 0);
        room.ctl(ControlOperation::Add, file.as_raw_fd(), idle).map_err(host("wait for"))?;
        let mut tap = Tap { file, supports: Offloads::default(), mtu: mtu(name), room };
        // What this kernel can do shows in what it takes.
        let all = Offloads { checksum: true, tso4: true, tso6: true, uso: true };
        let found = [all, Offloads { uso: false, ..all }].into_iter().find(|&o| tap.accept(o).is_ok());
        tap.supports = found.unwrap_or_default();
        tap.accept(Offloads::default()).map_err(host("set up"))?;
        Ok(tap)
    }
}

impl NetPort for Tap {
    fn supports(&self) -> Offloads {
        self.supports
    }

    fn accept(&mut self, offloads: Offloads) -> io::Result<()> {
        let Offloads { checksum, tso4, tso6, uso } = offloads;
        let choices = [(checksum, TUN_F_CSUM), (tso4, TUN_F_TSO4), (tso6, TUN_F_TSO6), (uso, TUN_F_USO)];
        let flags = choices.into_iter().filter(|c| c.0).fold(0, |all, c| all | c.1);
        // SAFETY: the argument is a number.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match io::Read::read(&mut self.file, buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &[VolatileSlice<'_>]) -> io::Result<bool> {
        let head = iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: HEADER };
        let body = frame.iter().map(|s| iovec { iov_base: s.ptr_guard().as_ptr().cast_mut().cast(), iov_len: s.len() });
        let runs: Vec<iovec> = std::iter::once(head).chain(body).collect();
        loop {
            // SAFETY: the kernel only reads the runs, which are the header and guest RAM that stays mapped for the
            // call; that the guest may change it meanwhile is no concern of the kernel's copy.
            let sent = unsafe { libc::writev(self.file.as_raw_fd(), runs.as_ptr(), runs.len() as c_int) };
            if sent >= 0 {
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    let wait = EpollEvent::new(EventSet::OUT | EventSet::ONE_SHOT, 0);
                    self.room.ctl(ControlOperation::Modify, self.file.as_raw_fd(), wait)?;
                    return Ok(false);
                }
                _ => return Err(error),
            }
        }
    }

    fn readable(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn writable(&self) -> RawFd {
        self.room.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::base::{GuestAddress, GuestMemory};

    #[test]
    fn an_interface_that_is_not_there_is_not_made() {
        for name in ["no-such-tap", "", "..", "a/b", "a\0b", "a-name-that-is-too-long"] {
            assert!(matches!(Tap::open(name).map(drop).unwrap_err(), TapError::Missing(n) if n == name));
        }
        assert!(Tap::open("no-such-tap").map(drop).unwrap_err().to_string().contains("ip tuntap add"));
        assert!(!exists("no-such-tap"));
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        // The loopback interface exists everywhere and is no tap.
        let error = Tap::open("lo").map(drop).unwrap_err();
        assert!(matches!(error, TapError::Forbidden(_) | TapError::Host { .. }), "{error}");
        assert!(error.to_string().contains("\"lo\""));
    }

    /// A socket that sees and sends the interface's frames on the host's side.
    fn tapped(name: &str) -> OwnedFd {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: sockaddr_ll is plain data for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        let c_name = CString::new(name).unwrap();
        // SAFETY: the name is a C string that lives for the call.
        address.sll_ifindex = unsafe { libc::if_nametoindex(c_name.as_ptr()) } as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: the address lives for the call, and has this length.
        assert_eq!(unsafe { libc::bind(fd, (&raw const address).cast(), len) }, 0);
        socket
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        // To everyone, of a kind for local experiments.
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5], payload].concat()
    }

    fn wait_readable(fd: RawFd) {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives here.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
    }

    /// Runs in a network namespace of its own, where this process is root.
    fn in_a_namespace() {
        const TUNSETPERSIST: c_ulong = 0x4004_54cb;
        let name = "test-tap";
        let maker = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes();
        InterfaceRequest::new(name, &flags).send(maker.as_raw_fd(), TUNSETIFF).unwrap();
        // SAFETY: the argument is a number.
        assert_eq!(unsafe { libc::ioctl(maker.as_raw_fd(), TUNSETPERSIST, 1) }, 0);
        assert!(matches!(Tap::open(name), Err(TapError::InUse(_))));
        drop(maker);
        let up = |on: bool| {
            let flags = if on { libc::IFF_UP as i16 } else { 0 }.to_ne_bytes();
            let asked = socket().unwrap();
            InterfaceRequest::new(name, &flags).send(asked.as_raw_fd(), libc::SIOCSIFFLAGS).unwrap();
        };
        up(true);

        let mut tap = Tap::open(name).unwrap();
        assert!(matches!(Tap::open(name), Err(TapError::InUse(_))));
        assert_eq!(tap.mtu(), Some(1500));
        assert!(tap.supports().checksum && tap.supports().tso4 && tap.supports().tso6);
        tap.accept(tap.supports()).unwrap();
        let host = tapped(name);

        // Out: from guest memory to the host, in two parts.
        let memory = GuestMemory::new(0x4000).unwrap();
        let out = frame(b"from the guest");
        memory.write(GuestAddress(0x1003), &out).unwrap();
        let parts = [(0x1003, 5), (0x1008, out.len() - 5)].map(|(a, l)| memory.slice(GuestAddress(a), l).unwrap());
        assert!(tap.send(&[0; HEADER], &parts).unwrap());
        let mut seen = [0u8; 256];
        // The host may say things on a new interface by itself (IPv6): look for ours.
        while !seen.starts_with(&out) {
            wait_readable(host.as_raw_fd());
            seen.fill(0);
            // SAFETY: the kernel writes at most the array's length.
            unsafe { libc::recv(host.as_raw_fd(), seen.as_mut_ptr().cast(), seen.len(), 0) };
        }

        // In: from the host, behind an empty header.
        let back = frame(b"from the host");
        // SAFETY: the kernel reads the slice.
        let sent = unsafe { libc::send(host.as_raw_fd(), back.as_ptr().cast(), back.len(), 0) };
        assert_eq!(sent as usize, back.len());
        let mut buffer = vec![1; super::super::MAX_FRAME];
        loop {
            wait_readable(tap.readable());
            let len = tap.receive(&mut buffer).unwrap().expect("a frame");
            if buffer[HEADER..len] == back {
                assert_eq!(buffer[..10], [0; 10]);
                break;
            }
        }
        while tap.receive(&mut buffer).unwrap().is_some() {}

        // A header that the kernel refuses, and an interface that is down, are errors and nothing worse.
        let mut lie = [0; HEADER];
        lie[..2].copy_from_slice(&[1, 0xff]);
        assert!(tap.send(&lie, &parts).is_err());
        up(false);
        assert!(tap.send(&[0; HEADER], &parts).is_err());
    }

    #[test]
    fn frames_cross_a_real_tap() {
        const INSIDE: &str = "ORANGERY_TEST_NAMESPACE";
        if std::env::var_os(INSIDE).is_some() {
            return in_a_namespace();
        }
        let unshare = |args: &[&std::ffi::OsStr]| {
            Command::new("unshare").args(["--user", "--map-root-user", "--net"]).args(args).env(INSIDE, "1").output()
        };
        let possible = unshare(&["test".as_ref(), "-w".as_ref(), "/dev/net/tun".as_ref()]);
        if !possible.is_ok_and(|o| o.status.success()) {
            eprintln!("skipped: this host has no user namespaces, or no /dev/net/tun for this user");
            return;
        }
        let own = std::env::current_exe().unwrap();
        let name = "backend::net::tap::tests::frames_cross_a_real_tap";
        let run = unshare(&[own.as_os_str(), "--exact".as_ref(), name.as_ref()]).unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
    }
}
