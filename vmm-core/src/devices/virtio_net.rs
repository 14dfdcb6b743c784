//! virtio network device (virtio 1.2 §5.1): one pair of queues and a control queue over a [`NetPort`].

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::net::{HEADER, MAX_FRAME, NetPort, Offloads};
use crate::base::{SavedState, StateError};
use crate::virtio::{Chain, ConfigBytes, ConfigSpace, Device, Fault, Info, Io, Reader, Role, Source, id};

#[cfg(test)]
mod tests;

/// Feature bits (§5.1.3).
mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Sources: frames came in; there is room to send; go on where a turn ended.
const FRAMES: u32 = 0;
const ROOM: u32 = 1;
const AGAIN: u32 = 2;

/// Frames one way before others get their turn.
const MAX_TURN: usize = 256;
/// Addresses of one kind that are filtered for; a guest with more gets all frames of the kind.
const MAX_ADDRESSES: usize = 64;
/// The shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// Bits of the status in the configuration (§5.1.4).
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Which frames the guest wants (§5.1.6.5.1, §5.1.6.5.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Filter {
    promiscuous: bool,
    all_multicast: bool,
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
    /// More addresses than are kept: all of the kind are wanted.
    all_unicast: bool,
}

impl Default for Filter {
    /// Everything, until the driver says otherwise.
    fn default() -> Filter {
        Filter {
            promiscuous: true,
            all_multicast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            all_unicast: false,
        }
    }
}

impl Filter {
    fn wants(&self, own: &Mac, to: &[u8]) -> bool {
        let listed = |list: &[Mac]| list.iter().any(|mac| mac == to);
        self.promiscuous
            || match to {
                [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => true,
                [first, ..] if first & 1 != 0 => self.all_multicast || listed(&self.multicast),
                _ => self.all_unicast || to == own || listed(&self.unicast),
            }
    }
}

/// The device.
pub struct Net {
    port: Box<dyn NetPort>,
    /// The address it was made with.
    permanent: Mac,
    mac: Mac,
    filter: Filter,
    config: Arc<ConfigBytes>,
    /// A received frame behind its header, and how long both are; 0: there is none.
    frame: Box<[u8]>,
    frame_len: usize,
    /// The network should hear where the guest is now.
    announce: bool,
    /// Signalled by the device itself, to go on in another turn.
    again: EventFd,
    /// What was last complained about, to say it once.
    complaint: Option<String>,
}

/// What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: Mac,
    filter: Filter,
}

impl SavedState for NetState {
    const VERSION: u32 = 1;
}

/// The header of a frame to send (§5.1.6).
struct Header {
    flags: u8,
    segments: u8,
    segment_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

const NEEDS_CHECKSUM: u8 = 1;
const NO_SEGMENTS: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Header {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (flags, segments) = (bytes[0], bytes[1]);
        Header { flags, segments, segment_size: word(4), checksum_start: word(6), checksum_offset: word(8) }
    }

    /// Whether it asks only for what was agreed on, about bytes that are in the frame.
    fn is_valid(&self, features: u64, frame: usize) -> bool {
        let needed = match self.segments {
            NO_SEGMENTS => 0,
            TCP4 => feature::HOST_TSO4,
            TCP6 => feature::HOST_TSO6,
            UDP => feature::HOST_USO,
            _ => return false,
        };
        let checksum = self.flags & NEEDS_CHECKSUM != 0;
        let end = usize::from(self.checksum_start) + usize::from(self.checksum_offset) + 2;
        let segments_ok = self.segments == NO_SEGMENTS || (checksum && self.segment_size > 0);
        features & needed == needed
            && segments_ok
            && self.flags & !NEEDS_CHECKSUM == 0
            && (!checksum || (features & feature::CSUM != 0 && end <= frame))
    }
}

impl Net {
    /// A card with this address in this network. Fails when the host is out of file descriptors.
    pub fn new(port: Box<dyn NetPort>, mac: Mac) -> io::Result<Net> {
        let net = Net {
            port,
            permanent: mac,
            mac,
            filter: Filter::default(),
            config: Arc::default(),
            frame: vec![0; MAX_FRAME].into(),
            frame_len: 0,
            announce: false,
            again: EventFd::new(EFD_NONBLOCK)?,
            complaint: None,
        };
        net.show();
        Ok(net)
    }

    /// Brings the configuration registers up to date: struct virtio_net_config (§5.1.4).
    fn show(&self) {
        let mut bytes = self.mac.to_vec();
        let status = [(self.port.is_plugged(), LINK_UP), (self.announce, ANNOUNCE)];
        bytes.extend(status.iter().filter(|(is, _)| *is).fold(0, |all, (_, bit)| all | bit).to_le_bytes());
        // One pair of queues.
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(self.port.mtu().unwrap_or(0).to_le_bytes());
        self.config.set(bytes);
    }

    /// Tells the person of the host's failure, once for each reason in a row.
    fn complain(&mut self, what: &str, error: &io::Error, io: &mut Io<'_>) {
        let message = format!("the host's network failed to {what} a frame: {error}");
        if self.complaint.as_ref() != Some(&message) {
            io.problem(message.clone());
            self.complaint = Some(message);
        }
    }

    fn go_on_later(&self) {
        let _ = self.again.write(1);
    }

    /// Gives frames to the guest as long as there are frames and buffers.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        for _ in 0..MAX_TURN {
            if self.frame_len == 0 {
                match self.port.receive(&mut self.frame) {
                    Ok(None) => return Ok(()),
                    Ok(Some(len)) if len < HEADER + MIN_FRAME => continue,
                    Ok(Some(_)) if !self.filter.wants(&self.mac, &self.frame[HEADER..HEADER + 6]) => continue,
                    Ok(Some(len)) => self.frame_len = len,
                    Err(error) => {
                        self.complain("receive", &error, io);
                        return Ok(());
                    }
                }
            }
            if !self.deliver(io)? {
                // The driver rings when it has buffers again.
                return Ok(());
            }
            self.frame_len = 0;
        }
        self.go_on_later();
        Ok(())
    }

    /// Puts the frame in as many buffers as it needs. False: the driver has not enough of them now.
    fn deliver(&mut self, io: &mut Io<'_>) -> Result<bool, Fault> {
        let merge = io.features() & feature::MRG_RXBUF != 0;
        let max = if merge { usize::from(QUEUE_SIZES[RECEIVE]) } else { 1 };
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        let enough = loop {
            if room >= self.frame_len {
                break true;
            }
            if chains.len() == max {
                // It will never fit: the driver offers less than it must (§5.1.6.3.1).
                break false;
            }
            let Some(chain) = io.pop(RECEIVE)? else {
                put_back(io, chains);
                return Ok(false);
            };
            let own = chain.writer().remaining();
            if own < HEADER {
                return Err(Fault::Request("a receive buffer has no room for a header"));
            }
            room += own;
            chains.push(chain);
        };
        if !enough {
            put_back(io, chains);
            return Ok(true);
        }
        self.frame[10..HEADER].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        if io.features() & feature::GUEST_CSUM == 0 {
            // Nothing about checksums may be told to a driver that did not ask (§5.1.6.4.1).
            self.frame[0] = 0;
        }
        let mut rest = &self.frame[..self.frame_len];
        for chain in chains {
            let mut writer = chain.writer();
            let written = writer.write(rest)?;
            rest = &rest[written..];
            chain.complete(written as u32);
        }
        Ok(true)
    }

    /// Sends the guest's frames as long as there is room for them.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        for _ in 0..MAX_TURN {
            let Some(chain) = io.pop(TRANSMIT)? else { return Ok(()) };
            let mut reader = chain.reader();
            let mut bytes = [0; HEADER];
            reader.read_exact(&mut bytes)?;
            let len = reader.remaining();
            let header = Header::parse(&bytes);
            if !(MIN_FRAME..=MAX_FRAME - HEADER).contains(&len) || !header.is_valid(io.features(), len) {
                // What no network takes is lost, as on a wire.
                continue;
            }
            bytes[10..].fill(0);
            let sent = self.port.send(&bytes, &reader.slices(len)?);
            match sent {
                Ok(true) => {}
                Ok(false) => {
                    io.put_back(TRANSMIT, chain);
                    return Ok(());
                }
                Err(error) => self.complain("send", &error, io),
            }
        }
        self.go_on_later();
        Ok(())
    }

    /// Control commands (§5.1.6.5).
    fn control(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        const OK: u8 = 0;
        const ERROR: u8 = 1;
        while let Some(chain) = io.pop(CONTROL)? {
            let mut reader = chain.reader();
            let command: [u8; 2] = reader.read_obj()?;
            let done = self.command(command, &mut reader);
            let mut writer = chain.writer();
            writer.write_obj(if done.is_some() { OK } else { ERROR })?;
            let written = writer.written();
            chain.complete(written);
        }
        Ok(())
    }

    /// Carries out a command; `None`: it is unknown or malformed, and nothing changed.
    fn command(&mut self, command: [u8; 2], reader: &mut Reader<'_>) -> Option<()> {
        const RX: u8 = 0;
        const MAC: u8 = 1;
        const ANNOUNCE: u8 = 3;
        match command {
            [RX, mode @ (0 | 1)] => {
                let on = match reader.read_obj::<u8>().ok()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                if mode == 0 {
                    self.filter.promiscuous = on;
                } else {
                    self.filter.all_multicast = on;
                }
            }
            [MAC, 0] => {
                let (unicast, all_unicast) = table(reader)?;
                let (multicast, all_multicast) = table(reader)?;
                self.filter.unicast = unicast;
                self.filter.all_unicast = all_unicast;
                self.filter.multicast = multicast;
                self.filter.all_multicast |= all_multicast;
            }
            [MAC, 1] => {
                self.mac = reader.read_obj().ok()?;
                self.show();
            }
            [ANNOUNCE, 0] => {
                self.announce = false;
                self.show();
            }
            _ => return None,
        }
        Some(())
    }
}

/// An address for a card that nobody gave one: always the same for the same network interface of the host, of which
/// there is only one, so that no two machines on a host share it.
pub fn derived_mac(interface: &str) -> Mac {
    // FNV-1a, 32 bits.
    let hash = interface.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    [0x52, 0x54, 0, a ^ d, b, c]
}

/// Undoes pops, the last first.
fn put_back(io: &mut Io<'_>, chains: Vec<Chain>) {
    for chain in chains.into_iter().rev() {
        io.put_back(RECEIVE, chain);
    }
}

/// A table of addresses; true, and no addresses: there are more than are kept.
fn table(reader: &mut Reader<'_>) -> Option<(Vec<Mac>, bool)> {
    let count = u32::from_le(reader.read_obj().ok()?) as usize;
    if count > reader.remaining() / size_of::<Mac>() {
        return None;
    }
    if count > MAX_ADDRESSES {
        reader.skip(count * size_of::<Mac>()).ok()?;
        return Some((Vec::new(), true));
    }
    let addresses = (0..count).map(|_| reader.read_obj().ok()).collect::<Option<Vec<Mac>>>()?;
    Some((addresses, false))
}

impl Device for Net {
    const INFO: Info = Info::new(id::NET, "net", Role::Net).class([2, 0, 0]);
    type State = NetState;

    fn features(&self) -> u64 {
        let Offloads { checksum, tso4, tso6, uso } = self.port.supports();
        let offered = [
            (checksum, feature::CSUM | feature::GUEST_CSUM),
            (checksum && tso4, feature::HOST_TSO4 | feature::GUEST_TSO4),
            (checksum && tso6, feature::HOST_TSO6 | feature::GUEST_TSO6),
            (checksum && uso, feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6),
            (self.port.mtu().is_some(), feature::MTU),
        ];
        let always = feature::MAC
            | feature::STATUS
            | feature::MRG_RXBUF
            | feature::CTRL_VQ
            | feature::CTRL_RX
            | feature::CTRL_MAC_ADDR
            | feature::GUEST_ANNOUNCE;
        offered.into_iter().filter(|o| o.0).fold(always, |all, o| all | o.1)
    }

    fn queues(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let features = io.features();
        let has = |bits: u64| features & bits == bits;
        let checksum = has(feature::GUEST_CSUM);
        let offloads = Offloads {
            checksum,
            tso4: checksum && has(feature::GUEST_TSO4),
            tso6: checksum && has(feature::GUEST_TSO6),
            uso: checksum && has(feature::GUEST_USO4 | feature::GUEST_USO6),
        };
        if let Err(error) = self.port.accept(offloads) {
            self.complain("prepare for", &error, io);
        }
        // A guest that went on learns that it is somewhere else now, or nowhere.
        if self.announce && (has(feature::GUEST_ANNOUNCE) || !self.port.is_plugged()) {
            self.show();
            io.config_changed();
        }
        Ok(())
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        match queue {
            RECEIVE => self.receive(io),
            TRANSMIT => self.transmit(io),
            _ => self.control(io),
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source { id: FRAMES, fd: self.port.readable() },
            Source { id: ROOM, fd: self.port.writable() },
            Source { id: AGAIN, fd: std::os::fd::AsRawFd::as_raw_fd(&self.again) },
        ]
    }

    fn on_source(&mut self, id: u32, io: &mut Io<'_>) -> Result<(), Fault> {
        match id {
            FRAMES => self.receive(io),
            ROOM => self.transmit(io),
            _ => {
                self.receive(io)?;
                self.transmit(io)
            }
        }
    }

    fn reset(&mut self) {
        // A host that refuses keeps the offloads of before; the next start sets them.
        let _ = self.port.accept(Offloads::default());
        self.mac = self.permanent;
        self.filter = Filter::default();
        self.frame_len = 0;
        self.announce = false;
        self.complaint = None;
        self.show();
    }

    fn save(&self) -> NetState {
        let Net {
            port: _,
            permanent: _,
            mac,
            filter,
            config: _,
            // A frame that waits is lost, as frames are.
            frame: _,
            frame_len: _,
            announce: _,
            again: _,
            complaint: _,
        } = self;
        NetState { mac: *mac, filter: filter.clone() }
    }

    fn restore(&mut self, state: NetState) -> Result<(), StateError> {
        let NetState { mac, filter } = state;
        if filter.unicast.len() > MAX_ADDRESSES || filter.multicast.len() > MAX_ADDRESSES {
            return Err(StateError::invalid("net", "it filters for more addresses than are kept"));
        }
        self.mac = mac;
        self.filter = filter;
        // The network may have to learn where the guest is now.
        self.announce = true;
        self.show();
        Ok(())
    }
}
