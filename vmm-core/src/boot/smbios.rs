//! SMBIOS tables (DSP0134 3.0): what the machine is, for systems and people that look it up.
//!
//! Firmware gets entry point and tables as two fw_cfg files and places them; where a kernel is loaded directly they go where
//! a PC's firmware puts them, in the segment at 0xf0000.

use crate::base::{GuestMemory, HIGH_RAM_START};
use crate::hw::Topology;
use crate::kvm::Processor;

/// fw_cfg's name of the entry point.
pub const ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// fw_cfg's name of the structures.
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

const MAKER: &str = "Orangery";
const PRODUCT: &str = "Virtual Machine";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Must be a date, month first; nothing depends on which.
const RELEASED: &str = "11/01/2026";

/// A reference to no structure.
const NO_HANDLE: u16 = 0xffff;
/// No error information is kept (§7.17.5).
const NO_ERRORS: u16 = 0xfffe;
const KIB: u64 = 1 << 10;

/// What of the machine the tables tell.
#[derive(Debug, Clone)]
pub struct SmbiosConfig {
    /// As people write it: the first byte is the first two digits.
    pub uuid: [u8; 16],
    /// Its CPUs.
    pub topology: Topology,
    /// RAM below 4 GiB, bytes.
    pub low_ram: u64,
    /// RAM from 4 GiB on, bytes.
    pub high_ram: u64,
    /// The processor.
    pub processor: Processor,
}

impl SmbiosConfig {
    /// A machine with this RAM.
    pub fn new(uuid: [u8; 16], topology: Topology, memory: &GuestMemory, processor: Processor) -> SmbiosConfig {
        SmbiosConfig { uuid, topology, low_ram: memory.low_top(), high_ram: memory.high_size(), processor }
    }
}

/// Entry point and structures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smbios {
    /// The 64-bit entry point (§5.2.2); the structures' address is left 0 for firmware to fill in.
    pub anchor: Vec<u8>,
    /// The structures, one after another.
    pub tables: Vec<u8>,
}

impl Smbios {
    /// Builds the tables.
    pub fn new(config: &SmbiosConfig) -> Smbios {
        let tables = structures(config);
        let mut anchor = b"_SM3_".to_vec();
        // Checksum; length; version 3.0.0; revision of the entry point; reserved.
        anchor.extend([0, 24, 3, 0, 0, 1, 0]);
        anchor.extend((tables.len() as u32).to_le_bytes());
        anchor.extend(0u64.to_le_bytes());
        let mut smbios = Smbios { anchor, tables };
        smbios.seal();
        smbios
    }

    /// Entry point and structures with the structures at `address`, for a machine without firmware.
    pub fn place(mut self, address: u64) -> (Vec<u8>, Vec<u8>) {
        if let Some(field) = self.anchor.get_mut(16..24) {
            field.copy_from_slice(&address.to_le_bytes());
        }
        self.seal();
        (self.anchor, self.tables)
    }

    /// Makes the entry point's bytes add up to 0.
    fn seal(&mut self) {
        let sum = self.anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(checksum) = self.anchor.get_mut(5) {
            *checksum = checksum.wrapping_sub(sum);
        }
    }
}

/// A structure as it grows: formatted bytes, then the strings they number from 1 (§6.1).
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Structure {
        let [low, high] = handle.to_le_bytes();
        Structure { bytes: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    /// A string's number; an empty one is 0, which is none.
    fn string(mut self, text: &str) -> Structure {
        if text.is_empty() {
            return self.u8(0);
        }
        self.strings.extend(text.bytes().filter(|&byte| byte != 0));
        self.strings.push(0);
        self.count += 1;
        let count = self.count;
        self.u8(count)
    }

    fn raw(mut self, bytes: &[u8]) -> Structure {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Structure {
        self.raw(&[value])
    }

    fn u16(self, value: u16) -> Structure {
        self.raw(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Structure {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Structure {
        self.raw(&value.to_le_bytes())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes[1] = self.bytes.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.strings.push(0);
        [self.bytes, self.strings].concat()
    }
}

/// Handles: the type in the high byte, a number in the low one.
fn handle(kind: u8, number: u8) -> u16 {
    u16::from_be_bytes([kind, number])
}

fn structures(config: &SmbiosConfig) -> Vec<u8> {
    let mut all = vec![bios(), system(config.uuid), chassis()];
    all.extend((0..config.topology.sockets as u8).map(|socket| processor(config, socket)));
    let size = config.low_ram + config.high_ram;
    all.push(memory_array(size));
    all.push(memory_device(size));
    let runs = [(0, config.low_ram), (HIGH_RAM_START, config.high_ram)];
    let runs = (0u8..).zip(runs.into_iter().filter(|&(_, len)| len > 0));
    all.extend(runs.map(|(number, (start, len))| mapped_range(number, start, len)));
    // System boot information (§7.33): no errors. End of table (§7.45).
    all.push(Structure::new(32, handle(32, 0)).raw(&[0; 6]).u8(0).finish());
    all.push(Structure::new(127, handle(127, 0)).finish());
    all.concat()
}

/// BIOS information (§7.1).
fn bios() -> Vec<u8> {
    /// The characteristics say nothing.
    const NOT_SUPPORTED: u64 = 1 << 3;
    /// The second extension byte: the tables describe a virtual machine.
    const VIRTUAL: u8 = 1 << 4;
    let mut version = VERSION.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || version.next().unwrap_or(0);
    Structure::new(0, handle(0, 0))
        .string(MAKER)
        .string(VERSION)
        // The segment it runs in; the date; its ROM, 256 KiB in units of 64 less one.
        .u16(0xe800)
        .string(RELEASED)
        .u8(3)
        .u64(NOT_SUPPORTED)
        .raw(&[0, VIRTUAL])
        // Its release, and no embedded controller's.
        .raw(&[next(), next(), 0xff, 0xff])
        .finish()
}

/// System information (§7.2).
fn system(uuid: [u8; 16]) -> Vec<u8> {
    const POWER_SWITCH: u8 = 6;
    // The first three fields are little-endian numbers (§7.2.1).
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    Structure::new(1, handle(1, 0))
        .string(MAKER)
        .string(PRODUCT)
        .string(VERSION)
        .string("")
        .raw(&[d, c, b, a, f, e, h, g])
        .raw(&rest)
        .u8(POWER_SWITCH)
        .string("")
        .string(PRODUCT)
        .finish()
}

/// System enclosure (§7.4): a case of no particular kind, all well with it.
fn chassis() -> Vec<u8> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, handle(3, 0))
        .string(MAKER)
        .u8(OTHER)
        .string(VERSION)
        .string("")
        .string("")
        // Boot-up, power supply, thermal, security.
        .raw(&[SAFE, SAFE, SAFE, UNKNOWN])
        // OEM-defined; height, power cords unspecified; no contained elements.
        .u32(0)
        .raw(&[0, 0, 0, 0])
        .string("")
        .finish()
}

/// Processor information (§7.5): one for each socket.
fn processor(config: &SmbiosConfig, socket: u8) -> Vec<u8> {
    const CENTRAL: u8 = 3;
    const FAMILY_OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const UPGRADE_OTHER: u8 = 1;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    const HARDWARE_THREAD: u16 = 1 << 4;
    let Topology { cores, threads, .. } = config.topology;
    let (cores, threads) = (cores as u16, (cores * threads) as u16);
    // From 256 on the byte says to look in the word.
    let byte = |count: u16| u8::try_from(count).unwrap_or(0xff);
    let many = if cores > 1 { MULTI_CORE } else { 0 } | if threads > cores { HARDWARE_THREAD } else { 0 };
    let [eax, edx] = config.processor.id;
    Structure::new(4, handle(4, socket))
        .string(&format!("CPU {socket}"))
        .raw(&[CENTRAL, FAMILY_OTHER])
        .string(&config.processor.vendor)
        .u32(eax)
        .u32(edx)
        .string(&config.processor.brand)
        // Voltage, external clock, speeds: unknown.
        .u8(0)
        .u16(0)
        .u16(0)
        .u16(0)
        .raw(&[POPULATED_ENABLED, UPGRADE_OTHER])
        // No cache structures.
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .string("")
        .string("")
        .string("")
        .raw(&[byte(cores), byte(cores), byte(threads)])
        .u16(CAPABLE_64_BIT | many)
        .u16(u16::from(FAMILY_OTHER))
        .u16(cores)
        .u16(cores)
        .u16(threads)
        .finish()
}

/// Physical memory array (§7.17).
fn memory_array(size: u64) -> Vec<u8> {
    const MOTHERBOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ECC: u8 = 3;
    /// The capacity is in the wide field.
    const WIDE: u32 = 0x8000_0000;
    let kib = u32::try_from(size / KIB).ok().filter(|&kib| kib < WIDE);
    Structure::new(16, handle(16, 0))
        .raw(&[MOTHERBOARD, SYSTEM_MEMORY, NO_ECC])
        .u32(kib.unwrap_or(WIDE))
        .u16(NO_ERRORS)
        .u16(1)
        .u64(if kib.is_some() { 0 } else { size })
        .finish()
}

/// Memory device (§7.18): all RAM as one module.
fn memory_device(size: u64) -> Vec<u8> {
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    /// The size is in the wide field.
    const WIDE: u16 = 0x7fff;
    let mib = (size >> 20) as u32;
    let narrow = u16::try_from(mib).ok().filter(|&mib| mib < WIDE);
    Structure::new(17, handle(17, 0))
        .u16(handle(16, 0))
        .u16(NO_ERRORS)
        // Widths: unknown.
        .u16(0xffff)
        .u16(0xffff)
        .u16(narrow.unwrap_or(WIDE))
        .u8(DIMM)
        .u8(0)
        .string("DIMM 0")
        .string("")
        .u8(RAM)
        .u16(DETAIL_OTHER)
        // Speed: unknown.
        .u16(0)
        .string(MAKER)
        .string("")
        .string("")
        .string("")
        // Rank: unknown.
        .u8(0)
        .u32(if narrow.is_some() { 0 } else { mib })
        // Configured speed, voltages: unknown.
        .u16(0)
        .u16(0)
        .u16(0)
        .u16(0)
        .finish()
}

/// Memory array mapped address (§7.20).
fn mapped_range(number: u8, start: u64, len: u64) -> Vec<u8> {
    let last = start + len - 1;
    Structure::new(19, handle(19, number))
        .u32((start / KIB) as u32)
        .u32((last / KIB) as u32)
        .u16(handle(16, 0))
        // One device in a row of it; the wide addresses are not needed.
        .u8(1)
        .u64(0)
        .u64(0)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn config(low_ram: u64, high_ram: u64) -> SmbiosConfig {
        let processor = Processor { vendor: "AuthenticAMD".into(), brand: "A processor".into(), id: [0x1234, 0x5678] };
        let topology = Topology { sockets: 2, cores: 3, threads: 2 };
        let uuid = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        SmbiosConfig { uuid, topology, low_ram, high_ram, processor }
    }

    /// A structure as a reader takes it apart: type, handle, formatted bytes, strings.
    type Parsed = (u8, u16, Vec<u8>, Vec<String>);

    fn parse(mut tables: &[u8]) -> Vec<Parsed> {
        let mut found = Vec::new();
        while !tables.is_empty() {
            let len = usize::from(tables[1]);
            let (formatted, rest) = tables.split_at(len);
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end].split(|&b| b == 0).filter(|s| !s.is_empty());
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
            let handle = u16::from_le_bytes([formatted[2], formatted[3]]);
            found.push((formatted[0], handle, formatted.to_vec(), strings));
            tables = &rest[end + 2..];
        }
        found
    }

    fn of(kind: u8, all: &[Parsed]) -> Vec<Parsed> {
        all.iter().filter(|s| s.0 == kind).cloned().collect()
    }

    fn word(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    fn dword(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_entry_point_sums_up_to_zero_wherever_the_structures_are() {
        let smbios = Smbios::new(&config(GIB, 0));
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!((smbios.anchor.len(), sum(&smbios.anchor)), (24, 0));
        assert_eq!((&smbios.anchor[..5], smbios.anchor[6]), (&b"_SM3_"[..], 24));
        assert_eq!(dword(&smbios.anchor, 12) as usize, smbios.tables.len());
        let (anchor, tables) = smbios.clone().place(0xf_0020);
        assert_eq!((sum(&anchor), dword(&anchor, 16), dword(&anchor, 20)), (0, 0xf_0020, 0));
        assert_eq!(tables, smbios.tables);
    }

    /// The lengths of version 3 (the table at the head of each structure's section).
    #[test]
    fn structures_have_their_lengths_and_handles_of_their_own_and_the_last_ends_the_table() {
        let all = parse(&Smbios::new(&config(2 * GIB, 2 * GIB)).tables);
        let kinds: Vec<_> = all.iter().map(|s| (s.0, s.2.len())).collect();
        let expected = [
            (0, 0x18),
            (1, 0x1b),
            (3, 0x16),
            (4, 0x30),
            (4, 0x30),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1f),
            (19, 0x1f),
            (32, 0x0b),
            (127, 4),
        ];
        assert_eq!(kinds, expected);
        let handles: std::collections::BTreeSet<_> = all.iter().map(|s| s.1).collect();
        assert_eq!(handles.len(), all.len());
    }

    #[test]
    fn every_string_that_is_named_is_there() {
        let all = parse(&Smbios::new(&config(GIB, 0)).tables);
        // Where each structure has its string numbers.
        let places: [(u8, &[usize]); 5] = [
            (0, &[4, 5, 8]),
            (1, &[4, 5, 6, 7, 0x19, 0x1a]),
            (3, &[4, 6, 7, 8, 0x15]),
            (4, &[4, 7, 0x10, 0x20, 0x21, 0x22]),
            (17, &[0x10, 0x11, 0x17, 0x18, 0x19, 0x1a]),
        ];
        for (kind, places) in places {
            for (_, _, bytes, strings) in of(kind, &all) {
                let mut named: Vec<_> = places.iter().map(|&at| usize::from(bytes[at])).filter(|&n| n > 0).collect();
                named.sort_unstable();
                assert_eq!(named, (1..=strings.len()).collect::<Vec<_>>(), "type {kind}: {strings:?}");
            }
        }
    }

    #[test]
    fn the_system_has_its_maker_and_the_uuid_in_the_specification_s_order() {
        let all = parse(&Smbios::new(&config(GIB, 0)).tables);
        let (_, _, bytes, strings) = &of(1, &all)[0];
        assert_eq!(strings[..2], ["Orangery", "Virtual Machine"]);
        // As in the example of §7.2.1.
        let wire = [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(bytes[8..24], wire);
    }

    #[test]
    fn each_socket_has_its_cores_and_threads() {
        let all = parse(&Smbios::new(&config(GIB, 0)).tables);
        let sockets = of(4, &all);
        assert_eq!(sockets.len(), 2);
        for (_, _, bytes, strings) in sockets {
            assert_eq!((bytes[0x23], bytes[0x24], bytes[0x25]), (3, 3, 6));
            assert_eq!((word(&bytes, 0x2a), word(&bytes, 0x2c), word(&bytes, 0x2e)), (3, 3, 6));
            assert_eq!((dword(&bytes, 8), dword(&bytes, 12)), (0x1234, 0x5678));
            assert_eq!(strings[1..], ["AuthenticAMD", "A processor"]);
        }
    }

    #[test]
    fn memory_of_any_size_is_told_in_full() {
        for (low, high) in [(4 << 20, 0), (2 * GIB, 0), (2 * GIB, 30 * GIB), (2 * GIB, 254 * GIB)] {
            let all = parse(&Smbios::new(&config(low, high)).tables);
            let size = low + high;
            let device = &of(17, &all)[0].2;
            let narrow = u32::from(word(device, 0x0c));
            let mib = if narrow == 0x7fff { dword(device, 0x1c) } else { narrow };
            assert_eq!(u64::from(mib) << 20, size);
            assert_eq!(u64::from(dword(&of(16, &all)[0].2, 7)) * KIB, size);
            let mapped: u64 =
                of(19, &all).iter().map(|s| (u64::from(dword(&s.2, 8)) + 1 - u64::from(dword(&s.2, 4))) * KIB).sum();
            assert_eq!(mapped, size);
            assert_eq!(of(19, &all).len(), if high > 0 { 2 } else { 1 });
        }
    }
}
