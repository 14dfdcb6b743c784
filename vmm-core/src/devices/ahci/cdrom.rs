//! A CD and DVD drive behind ATAPI packets (MMC-3, SPC-2): what it answers, and the life of its tray.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::disk::{BLOCK, Medium};

/// Blocks above which a disc is a DVD: 80 minutes of 75 blocks a second.
const CD_BLOCKS: u64 = 80 * 60 * 75;
/// Blocks before the first: two seconds.
const LEAD_IN: u64 = 150;
const PROFILE_CD: u16 = 0x0008;
const PROFILE_DVD: u16 = 0x0010;

/// Packet commands (MMC-3 §6).
mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW_REMOVAL: u8 = 0x1e;
    pub const READ_FORMAT_CAPACITIES: u8 = 0x23;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK_10: u8 = 0x2b;
    pub const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub const READ_SUBCHANNEL: u8 = 0x42;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const READ_DISC_STRUCTURE: u8 = 0xad;
    pub const SET_CD_SPEED: u8 = 0xbb;
    pub const MECHANISM_STATUS: u8 = 0xbd;
    pub const READ_CD: u8 = 0xbe;
}

/// Why a command failed: key, code and qualifier (SPC-2 §7.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sense {
    pub(super) key: u8,
    code: u8,
    qualifier: u8,
}

impl Sense {
    const NONE: Sense = Sense::new(0, 0, 0);
    const NO_MEDIUM: Sense = Sense::new(2, 0x3a, 1);
    const NO_MEDIUM_TRAY_OPEN: Sense = Sense::new(2, 0x3a, 2);
    pub(super) const UNREADABLE: Sense = Sense::new(3, 0x11, 0);
    const UNKNOWN_COMMAND: Sense = Sense::new(5, 0x20, 0);
    const OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
    const INVALID_FIELD: Sense = Sense::new(5, 0x24, 0);
    const NOT_SAVED: Sense = Sense::new(5, 0x39, 0);
    const REMOVAL_PREVENTED: Sense = Sense::new(5, 0x53, 2);
    const ILLEGAL_MODE: Sense = Sense::new(5, 0x64, 0);
    const MEDIUM_CHANGED: Sense = Sense::new(6, 0x28, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Sense {
        Sense { key, code, qualifier }
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = 10;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}

/// What happened to the medium since the guest last asked (MMC-3 §6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Event {
    #[default]
    Nothing,
    EjectRequest,
    NewMedium,
    MediumRemoved,
}

/// What a packet comes to.
pub(super) enum Reply {
    /// Nothing is transferred.
    Done,
    /// These bytes, already cut to what the guest wants.
    Data(Vec<u8>),
    /// Bytes of the medium.
    Read {
        medium: Arc<Medium>,
        offset: u64,
        len: u64,
    },
    /// The guest opened the tray: the medium is out.
    Ejected,
    Failed(Sense),
}

/// The drive.
#[derive(Default)]
pub(super) struct CdDrive {
    medium: Option<Arc<Medium>>,
    tray_open: bool,
    locked: bool,
    sense: Sense,
    /// To be told before anything else.
    attention: Option<Sense>,
    event: Event,
}

/// What a checkpoint keeps of a drive. Which medium is in it is the machine's to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdState {
    has_medium: bool,
    tray_open: bool,
    locked: bool,
    sense: Sense,
    attention: Option<Sense>,
    event: Event,
}

impl CdDrive {
    pub fn new(medium: Option<Medium>) -> CdDrive {
        CdDrive { medium: medium.map(Arc::new), ..CdDrive::default() }
    }

    /// Puts a medium in, or takes it out. False: the guest has locked the tray; it is asked to let go.
    pub fn change(&mut self, medium: Option<Medium>, force: bool) -> bool {
        if self.locked && self.medium.is_some() && !force {
            self.event = Event::EjectRequest;
            return false;
        }
        self.medium = medium.map(Arc::new);
        if self.medium.is_some() {
            self.tray_open = false;
            self.attention = Some(Sense::MEDIUM_CHANGED);
            self.event = Event::NewMedium;
        } else {
            self.event = Event::MediumRemoved;
        }
        true
    }

    pub fn has_medium(&self) -> bool {
        self.medium.is_some()
    }

    /// Back to power-on; the medium stays.
    pub fn reset(&mut self) {
        *self = CdDrive { medium: self.medium.take(), tray_open: self.tray_open, ..CdDrive::default() };
    }

    /// Notes why the last command failed, for the guest to ask.
    pub fn fail(&mut self, sense: Sense) {
        self.sense = sense;
    }

    pub fn save(&self) -> CdState {
        let CdDrive { medium, tray_open, locked, sense, attention, event } = self;
        CdState {
            has_medium: medium.is_some(),
            tray_open: *tray_open,
            locked: *locked,
            sense: *sense,
            attention: *attention,
            event: *event,
        }
    }

    /// Takes over a state. A medium that is not the one of then is a change that the guest is told of.
    pub fn restore(&mut self, state: &CdState) {
        let CdState { has_medium, tray_open, locked, sense, attention, event } = *state;
        *self = CdDrive { medium: self.medium.take(), tray_open, locked, sense, attention, event };
        if has_medium != self.medium.is_some() {
            self.tray_open &= self.medium.is_none();
            self.attention = self.medium.is_some().then_some(Sense::MEDIUM_CHANGED);
            self.event = if self.medium.is_some() { Event::NewMedium } else { Event::MediumRemoved };
        }
    }

    fn blocks(&self) -> u64 {
        self.medium.as_ref().map_or(0, |m| m.blocks())
    }

    fn profile(&self) -> u16 {
        match self.blocks() {
            0 => 0,
            blocks if blocks <= CD_BLOCKS => PROFILE_CD,
            _ => PROFILE_DVD,
        }
    }

    fn no_medium(&self) -> Sense {
        if self.tray_open { Sense::NO_MEDIUM_TRAY_OPEN } else { Sense::NO_MEDIUM }
    }

    /// Executes a packet.
    pub fn execute(&mut self, packet: &[u8; 16]) -> Reply {
        let code = packet[0];
        let exempt = matches!(code, op::INQUIRY | op::REQUEST_SENSE | op::GET_CONFIGURATION | op::GET_EVENT_STATUS);
        let reply = match self.attention {
            Some(sense) if !exempt => {
                self.attention = None;
                Err(sense)
            }
            _ => self.perform(packet),
        };
        if code != op::REQUEST_SENSE {
            self.sense = reply.as_ref().err().copied().unwrap_or_default();
        }
        reply.unwrap_or_else(Reply::Failed)
    }

    fn perform(&mut self, packet: &[u8; 16]) -> Result<Reply, Sense> {
        let p = packet;
        let long = |at: usize| u64::from(u32::from_be_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]]));
        let short = |at: usize| usize::from(u16::from_be_bytes([p[at], p[at + 1]]));
        let data = |mut bytes: Vec<u8>, room: usize| {
            bytes.truncate(room);
            Ok(Reply::Data(bytes))
        };
        // These work without a medium.
        match p[0] {
            op::REQUEST_SENSE => {
                let sense = std::mem::take(&mut self.sense);
                let sense = if sense == Sense::NONE { self.attention.take().unwrap_or_default() } else { sense };
                return data(sense.bytes(), p[4].into());
            }
            op::INQUIRY => return data(inquiry(p)?, short(3)),
            op::MODE_SENSE_6 => return data(self.mode_sense(p, 4)?, p[4].into()),
            op::MODE_SENSE_10 => return data(self.mode_sense(p, 8)?, short(7)),
            op::START_STOP_UNIT => return self.start_stop(p[4]),
            op::PREVENT_ALLOW_REMOVAL => {
                self.locked = p[4] & 1 != 0;
                return Ok(Reply::Done);
            }
            op::GET_CONFIGURATION => return data(self.configuration(p)?, short(7)),
            op::GET_EVENT_STATUS => return data(self.event_status(p)?, short(7)),
            op::MECHANISM_STATUS => {
                return data(vec![0, if self.tray_open { 0x10 } else { 0 }, 0, 0, 0, 1, 0, 0], short(8));
            }
            op::SET_CD_SPEED | op::SYNCHRONIZE_CACHE => return Ok(Reply::Done),
            op::READ_FORMAT_CAPACITIES => return data(self.format_capacities(), short(7)),
            _ => {}
        }
        let needs_medium = matches!(
            p[0],
            op::TEST_UNIT_READY
                | op::READ_CAPACITY
                | op::READ_10
                | op::READ_12
                | op::READ_CD
                | op::SEEK_10
                | op::READ_SUBCHANNEL
                | op::READ_TOC
                | op::READ_DISC_INFORMATION
                | op::READ_TRACK_INFORMATION
                | op::READ_DISC_STRUCTURE
        );
        if !needs_medium {
            return Err(Sense::UNKNOWN_COMMAND);
        }
        let Some(medium) = self.medium.clone() else { return Err(self.no_medium()) };
        let blocks = medium.blocks();
        let read = |first: u64, count: u64| {
            if first.checked_add(count).is_none_or(|end| end > blocks) {
                Err(Sense::OUT_OF_RANGE)
            } else if count == 0 {
                Ok(Reply::Done)
            } else {
                Ok(Reply::Read { medium, offset: first * BLOCK, len: count * BLOCK })
            }
        };
        match p[0] {
            op::READ_CAPACITY => {
                let last = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
                Ok(Reply::Data([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat()))
            }
            op::READ_10 => read(long(2), short(7) as u64),
            op::READ_12 => read(long(2), long(6)),
            op::READ_CD => match (p[9] & 0xf8, p[1] >> 2 & 7) {
                (0, _) => read(long(2), 0),
                // User data of a block of any type, or of mode 1.
                (0x10, 0 | 2) => read(long(2), long(5) & 0xff_ffff),
                _ => Err(Sense::ILLEGAL_MODE),
            },
            op::SEEK_10 => read(long(2), 0),
            op::READ_SUBCHANNEL => data(subchannel(p)?, short(7)),
            op::READ_TOC => data(toc(p, blocks)?, short(7)),
            op::READ_DISC_INFORMATION => {
                let mut bytes = vec![0; 34];
                // Finished, one session, one track, for use anywhere.
                bytes[..8].copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1, 0x20]);
                data(bytes, short(7))
            }
            op::READ_TRACK_INFORMATION => {
                let mut bytes = vec![0; 36];
                // Track 1 of session 1, data, mode 1.
                bytes[..7].copy_from_slice(&[0, 34, 1, 1, 0, 0x04, 0x01]);
                bytes[24..28].copy_from_slice(&u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
                data(bytes, short(7))
            }
            op::READ_DISC_STRUCTURE => data(self.disc_structure(p, blocks)?, short(8)),
            _ => Ok(Reply::Done),
        }
    }

    fn start_stop(&mut self, what: u8) -> Result<Reply, Sense> {
        // A change of power, or of the motor only, is always done already.
        if what & 0xf0 != 0 || what & 2 == 0 {
            return Ok(Reply::Done);
        }
        if what & 1 != 0 {
            self.tray_open = false;
            return Ok(Reply::Done);
        }
        if self.locked {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        self.tray_open = true;
        match self.medium.take() {
            Some(_) => {
                self.event = Event::MediumRemoved;
                Ok(Reply::Ejected)
            }
            None => Ok(Reply::Done),
        }
    }

    /// Mode pages (MMC-3 §5.3) behind a header of four or eight bytes.
    fn mode_sense(&self, p: &[u8; 16], header: usize) -> Result<Vec<u8>, Sense> {
        let (control, page) = (p[2] >> 6, p[2] & 0x3f);
        if control == 3 {
            return Err(Sense::NOT_SAVED);
        }
        let pages: [Vec<u8>; 3] = [
            // Error recovery: five retries.
            vec![0x01, 0x06, 0, 5, 0, 0, 0, 0],
            // Audio: two channels, full volume.
            vec![0x0e, 0x0e, 4, 0, 0, 0, 0, 0, 1, 0xff, 2, 0xff, 0, 0, 0, 0],
            self.capabilities(),
        ];
        let mut bytes = vec![0; header];
        for mut body in pages {
            if page == 0x3f || page == body[0] {
                if control == 1 {
                    // Nothing can be changed.
                    body[2..].fill(0);
                }
                bytes.extend(body);
            }
        }
        if bytes.len() == header {
            return Err(Sense::INVALID_FIELD);
        }
        let medium_type = match (self.medium.is_some(), self.tray_open) {
            (true, _) => 0x01,
            (false, false) => 0x70,
            (false, true) => 0x71,
        };
        if header == 4 {
            bytes[0] = bytes.len() as u8 - 1;
            bytes[1] = medium_type;
        } else {
            bytes[1] = bytes.len() as u8 - 2;
            bytes[2] = medium_type;
        }
        Ok(bytes)
    }

    /// Capabilities and mechanical status: reads CD-R, CD-RW and DVD-ROM; a tray that locks and ejects; 32 times the
    /// first CD's speed.
    fn capabilities(&self) -> Vec<u8> {
        let [high, low] = 5632u16.to_be_bytes();
        let lock = if self.locked { 0x02 } else { 0 };
        let mut page = vec![0x2a, 0x12, 0x0b, 0, 0x70, 0, 0x29 | lock, 0, high, low, 0, 0, 2, 0, high, low];
        page.resize(20, 0);
        page
    }

    /// Features and profiles (MMC-3 §5.2).
    fn configuration(&self, p: &[u8; 16]) -> Result<Vec<u8>, Sense> {
        let (kind, start) = (p[1] & 3, u16::from_be_bytes([p[2], p[3]]));
        if kind == 3 {
            return Err(Sense::INVALID_FIELD);
        }
        let profile = self.profile();
        let (cd, dvd) = (u8::from(profile == PROFILE_CD), u8::from(profile == PROFILE_DVD));
        let medium = cd | dvd;
        // Number, version and persistence and currency, then the data.
        let features: [(u16, u8, Vec<u8>); 8] = [
            (0x0000, 0x03, vec![0, PROFILE_DVD as u8, dvd, 0, 0, PROFILE_CD as u8, cd, 0]),
            // Core: ATAPI.
            (0x0001, 0x07, vec![0, 0, 0, 2, 0, 0, 0, 0]),
            (0x0002, 0x03, vec![0, 0, 0, 0]),
            // A tray that ejects and locks.
            (0x0003, 0x03, vec![0x29, 0, 0, 0]),
            (0x0010, medium, vec![0, 0, 8, 0, 0, if dvd != 0 { 16 } else { 1 }, 0, 0]),
            (0x001e, cd, vec![]),
            (0x001f, dvd, vec![]),
            (0x0100, 0x03, vec![]),
        ];
        let mut bytes = vec![0; 6];
        bytes.extend(profile.to_be_bytes());
        for (number, flags, body) in features {
            let wanted = match kind {
                0 => number >= start,
                1 => number >= start && flags & 1 != 0,
                _ => number == start,
            };
            if wanted {
                bytes.extend(number.to_be_bytes());
                bytes.extend([flags, body.len() as u8]);
                bytes.extend(body);
            }
        }
        let len = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&len.to_be_bytes());
        Ok(bytes)
    }

    fn event_status(&mut self, p: &[u8; 16]) -> Result<Vec<u8>, Sense> {
        const MEDIA: u8 = 4;
        if p[1] & 1 == 0 {
            // Only polling: there is no queue to wait in.
            return Err(Sense::INVALID_FIELD);
        }
        if p[4] & 1 << MEDIA == 0 {
            return Ok(vec![0, 2, 0x80, 1 << MEDIA]);
        }
        let code = match std::mem::take(&mut self.event) {
            Event::Nothing => 0,
            Event::EjectRequest => 1,
            Event::NewMedium => 2,
            Event::MediumRemoved => 3,
        };
        let status = u8::from(self.tray_open) | u8::from(self.medium.is_some()) << 1;
        Ok(vec![0, 6, MEDIA, 1 << MEDIA, code, status, 0, 0])
    }

    fn format_capacities(&self) -> Vec<u8> {
        let blocks = u32::try_from(self.blocks()).unwrap_or(u32::MAX).to_be_bytes();
        let kind = if self.medium.is_some() { 2 } else { 3 };
        let mut bytes = vec![0, 0, 0, 8];
        bytes.extend(blocks);
        bytes.extend([kind, 0, 8, 0]);
        bytes
    }

    /// Format and copyright of a DVD (MMC-3 §6.22).
    fn disc_structure(&self, p: &[u8; 16], blocks: u64) -> Result<Vec<u8>, Sense> {
        if p[1] & 0xf != 0 || p[6] != 0 || self.profile() != PROFILE_DVD {
            return Err(Sense::INVALID_FIELD);
        }
        match p[7] {
            0 => {
                // DVD-ROM, 120 mm, one layer from physical sector 0x30000 on.
                let end = (0x2_ffffu32.saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX))).to_be_bytes();
                let mut bytes = vec![0; 2052];
                bytes[..2].copy_from_slice(&2050u16.to_be_bytes());
                bytes[4..8].copy_from_slice(&[0x01, 0x0f, 0x01, 0]);
                bytes[8..12].copy_from_slice(&[0, 3, 0, 0]);
                bytes[13..16].copy_from_slice(&end[1..]);
                Ok(bytes)
            }
            // No copy protection.
            1 => Ok(vec![0, 6, 0, 0, 0, 0, 0, 0]),
            _ => Err(Sense::INVALID_FIELD),
        }
    }
}

fn inquiry(p: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    if p[1] & 1 != 0 || p[2] != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut bytes = vec![0x05, 0x80, 0, 0x21, 31, 0, 0, 0];
    bytes.extend(b"ORANGERY");
    bytes.extend(b"CD-ROM          ");
    bytes.extend(b"1.0 ");
    Ok(bytes)
}

/// There is no audio to be at.
fn subchannel(p: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    const NO_AUDIO: u8 = 0x15;
    match (p[2] & 0x40 != 0, p[3]) {
        (false, _) => Ok(vec![0, NO_AUDIO, 0, 0]),
        (true, 1) => {
            let mut bytes = vec![0, NO_AUDIO, 0, 12, 1, 0x14, 1, 1];
            bytes.resize(16, 0);
            Ok(bytes)
        }
        _ => Err(Sense::INVALID_FIELD),
    }
}

/// The table of contents of a disc with one data track (MMC-3 §6.28).
fn toc(p: &[u8; 16], blocks: u64) -> Result<Vec<u8>, Sense> {
    const LEAD_OUT: u8 = 0xaa;
    // ADR 1, a data track.
    const DATA: u8 = 0x14;
    let msf = p[1] & 2 != 0;
    let minutes = |block: u64| {
        let at = block + LEAD_IN;
        [u8::try_from(at / 75 / 60).unwrap_or(u8::MAX), (at / 75 % 60) as u8, (at % 75) as u8]
    };
    let address = |block: u64| {
        let [m, s, f] = minutes(block);
        if msf { [0, m, s, f] } else { u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes() }
    };
    // Older software says the format in the last byte.
    let format = if p[2] & 0xf != 0 { p[2] & 0xf } else { p[9] >> 6 };
    let mut bytes = vec![0, 0, 1, 1];
    let start = p[6];
    match format {
        0 if start > 1 && start != LEAD_OUT => return Err(Sense::INVALID_FIELD),
        0 => {
            if start <= 1 {
                bytes.extend([0, DATA, 1, 0]);
                bytes.extend(address(0));
            }
            bytes.extend([0, DATA, LEAD_OUT, 0]);
            bytes.extend(address(blocks));
        }
        1 => {
            bytes.extend([0, DATA, 1, 0]);
            bytes.extend(address(0));
        }
        2 => {
            let [m, s, f] = minutes(blocks);
            let [m1, s1, f1] = minutes(0);
            for (point, place) in [(0xa0, [1, 0, 0]), (0xa1, [1, 0, 0]), (0xa2, [m, s, f]), (1, [m1, s1, f1])] {
                bytes.extend([1, DATA, 0, point, 0, 0, 0, 0]);
                bytes.extend(place);
            }
        }
        _ => return Err(Sense::INVALID_FIELD),
    }
    let len = bytes.len() as u16 - 2;
    bytes[..2].copy_from_slice(&len.to_be_bytes());
    Ok(bytes)
}
