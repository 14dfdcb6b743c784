//! The ACPI tables (ACPI 6.5 §5.2) and the script by which firmware places them (fw_cfg `etc/table-loader`).
//!
//! Full (not hardware-reduced) ACPI: PM1a block, PM timer and GPE0 at 0x600, fixed power button, reset through 0xcf9,
//! no HPET. There is one builder: where no firmware runs, [`AcpiFiles::place`] carries out the script itself.

use acpi_tables::aml::{
    Add, AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Index,
    Local, Memory32Fixed, Method, Name, NotEqual, Notify, Or, Package, PackageBuilder, Path, ResourceTemplate, Return,
    Scope, Store, Uuid, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::layout::{BARS_END, ECAM_LEN, PM_BASE};
use crate::devices::tpm_crb;
use crate::hw::Topology;

const OEM: [u8; 6] = *b"ORANGE";
const OEM_TABLE: [u8; 8] = *b"ORANGERY";
const TPM: u32 = tpm_crb::ADDRESS as u32;
const TPM_LEN: u32 = tpm_crb::LEN as u32;

/// fw_cfg's name of the tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// fw_cfg's name of the root pointer.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// fw_cfg's name of the memory where firmware logs what it measures into the TPM.
pub const TPM_LOG_FILE: &str = "etc/tpm/log";
/// Its size, bytes: the least that the specification of the log asks for (TCG PC Client Platform Firmware Profile §10).
pub const TPM_LOG_LEN: u32 = 64 << 10;
/// fw_cfg's name of the script.
pub const LOADER_FILE: &str = "etc/table-loader";

/// fw_cfg's name of the page with the machine's generation id.
pub const GENERATION_FILE: &str = "etc/vmgenid_guid";
/// fw_cfg's name of the 8 bytes where firmware tells where it has put that page.
pub const GENERATION_ADDRESS_FILE: &str = "etc/vmgenid_addr";
/// Where the id is in its page. Firmware takes what a pointer points to for a table where it looks like one: zeroes don't.
pub const GENERATION_OFFSET: u64 = 40;
/// The general purpose event by which the guest hears of another id.
pub const GENERATION_EVENT: u8 = 5;
const GENERATION_PAGE: u64 = 0x1000;

/// What of the machine the tables tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiConfig {
    /// CPUs.
    pub topology: Topology,
    /// The first address above low RAM.
    pub low_top: u32,
    /// PCIEXBAR.
    pub ecam: u32,
    /// The TPM, if there is one, and who writes its log.
    pub tpm: Option<EventLog>,
}

/// The log of what was measured into a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLog {
    /// Firmware writes it, into the memory that it makes of [`TPM_LOG_FILE`].
    Firmware,
    /// Nobody measures anything.
    None,
}

/// The three files that firmware asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiFiles {
    /// All tables, one after another.
    pub tables: Vec<u8>,
    /// The root pointer.
    pub rsdp: Vec<u8>,
    /// The script.
    pub loader: Vec<u8>,
}

/// A pointer or checksum that can only be computed once the tables have their place.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Adds the address of the file `to` to the little-endian value of `len` bytes at `at` of another.
    Pointer { file: &'static str, to: &'static str, at: u32, len: u8 },
    /// Makes the bytes [start, start + len) of a file sum up to 0 by the byte at `at`.
    Checksum { file: &'static str, at: u32, start: u32, len: u32 },
}

impl AcpiFiles {
    /// Builds the tables. Their size depends on the number of CPUs and the TPM alone.
    pub fn new(config: AcpiConfig) -> AcpiFiles {
        let mut build = Build::default();
        let facs = build.put(&bytes(&FACS::new()));
        let dsdt = build.put_table(dsdt(config).as_slice());
        let fadt = build.put_table(&fadt(facs, dsdt));
        let generation = Step::Pointer { file: TABLES_FILE, to: GENERATION_FILE, at: dsdt + GENERATION_AT, len: 4 };
        build.steps.push(generation);
        build.point(fadt + 36, 4);
        build.point(fadt + 40, 4);
        build.point(fadt + 140, 8);
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, 1);
        mcfg.add_ecam(u64::from(config.ecam), 0, 0, 255);
        let mut listed =
            vec![fadt, build.put_table(madt(config.topology).as_slice()), build.put_table(&bytes(&mcfg)), {
                // WAET (Windows ACPI Emulated Devices Table): the PM timer needs reading only once.
                let mut waet = Sdt::new(*b"WAET", 40, 1, OEM, OEM_TABLE, 1);
                waet.write_u32(36, 2);
                build.put_table(waet.as_slice())
            }];
        if let Some(log) = config.tpm {
            let table = build.put_table(tpm2(log).as_slice());
            listed.push(table);
            if log == EventLog::Firmware {
                let at = table + TPM2_LOG_ADDRESS;
                build.steps.push(Step::Pointer { file: TABLES_FILE, to: TPM_LOG_FILE, at, len: 8 });
            }
        }
        // Some programs know only 32-bit pointers: GRUB's `halt` reads where RSDT should be, whatever is there.
        let rsdt = build.put_list(*b"RSDT", &listed, 4);
        let xsdt = build.put_list(*b"XSDT", &listed, 8);
        let mut rsdp = b"RSD PTR \0".to_vec();
        rsdp.extend(OEM);
        rsdp.push(2);
        rsdp.extend(rsdt.to_le_bytes());
        rsdp.extend(36u32.to_le_bytes());
        rsdp.extend(u64::from(xsdt).to_le_bytes());
        rsdp.extend([0; 4]);
        build.steps.push(Step::Pointer { file: RSDP_FILE, to: TABLES_FILE, at: 16, len: 4 });
        build.steps.push(Step::Pointer { file: RSDP_FILE, to: TABLES_FILE, at: 24, len: 8 });
        build.steps.push(Step::Checksum { file: RSDP_FILE, at: 8, start: 0, len: 20 });
        build.steps.push(Step::Checksum { file: RSDP_FILE, at: 32, start: 0, len: 36 });
        // Checksums come after every pointer inside what they cover.
        build.steps.sort_by_key(|step| matches!(step, Step::Checksum { .. }));
        let loader = script(&build.steps);
        AcpiFiles { tables: build.tables, rsdp, loader }
    }

    /// Bytes of all that [`AcpiFiles::place`] lays out: the tables, and last the page of the generation id.
    pub fn placed_len(&self) -> u64 {
        (self.tables.len() as u64).next_multiple_of(0x1000) + GENERATION_PAGE
    }

    /// The tables and the root pointer as they are with the tables at `address`, for a machine without firmware.
    pub fn place(mut self, address: u64) -> (Vec<u8>, Vec<u8>) {
        let generation = address + self.placed_len() - GENERATION_PAGE;
        for entry in self.loader.chunks_exact(ENTRY) {
            let name = |at: usize| entry[at..at + NAME].split(|&b| b == 0).next().unwrap_or_default().to_vec();
            let word =
                |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
            let file = if name(4) == RSDP_FILE.as_bytes() { &mut self.rsdp } else { &mut self.tables };
            match word(0) as u32 {
                ADD_POINTER => {
                    let (at, len) = (word(4 + 2 * NAME), usize::from(entry[8 + 2 * NAME]));
                    let mut value = [0; 8];
                    value[..len].copy_from_slice(&file[at..at + len]);
                    let base = if name(4 + NAME) == GENERATION_FILE.as_bytes() { generation } else { address };
                    let sum = u64::from_le_bytes(value).wrapping_add(base);
                    file[at..at + len].copy_from_slice(&sum.to_le_bytes()[..len]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) = (word(4 + NAME), word(8 + NAME), word(12 + NAME));
                    file[at] = file[at].wrapping_sub(sum(&file[start..start + len]));
                }
                _ => {}
            }
        }
        (self.tables, self.rsdp)
    }
}

#[derive(Default)]
struct Build {
    tables: Vec<u8>,
    steps: Vec<Step>,
}

impl Build {
    /// Appends a structure, aligned as FACS needs it; returns its offset.
    fn put(&mut self, table: &[u8]) -> u32 {
        self.tables.resize(self.tables.len().next_multiple_of(64), 0);
        let at = self.tables.len() as u32;
        self.tables.extend_from_slice(table);
        at
    }

    /// Appends a table whose checksum is left to the script.
    fn put_table(&mut self, table: &[u8]) -> u32 {
        let at = self.put(table);
        self.tables[at as usize + 9] = 0;
        self.steps.push(Step::Checksum { file: TABLES_FILE, at: at + 9, start: at, len: table.len() as u32 });
        at
    }

    /// Appends a table of pointers to others, `width` bytes each.
    fn put_list(&mut self, signature: [u8; 4], tables: &[u32], width: u8) -> u32 {
        let mut list = Sdt::new(signature, 36, 1, OEM, OEM_TABLE, 1);
        for &table in tables {
            list.append_slice(&u64::from(table).to_le_bytes()[..usize::from(width)]);
        }
        let at = self.put_table(list.as_slice());
        for entry in 0..tables.len() as u32 {
            self.point(at + 36 + u32::from(width) * entry, width);
        }
        at
    }

    fn point(&mut self, at: u32, len: u8) {
        self.steps.push(Step::Pointer { file: TABLES_FILE, to: TABLES_FILE, at, len });
    }
}

const ENTRY: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const WRITE_POINTER: u32 = 4;
const ZONE_HIGH: u8 = 1;
/// The segment 0xf0000, where the root pointer is looked for.
const ZONE_FSEG: u8 = 2;

/// The script: 128-byte commands that SeaBIOS and OVMF carry out.
fn script(steps: &[Step]) -> Vec<u8> {
    let name = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(NAME, 0);
        bytes
    };
    let allocate = |file, align: u32, zone: u8| [name(file), align.to_le_bytes().to_vec(), vec![zone]].concat();
    let mut commands = vec![
        (ALLOCATE, allocate(RSDP_FILE, 16, ZONE_FSEG)),
        (ALLOCATE, allocate(TABLES_FILE, 64, ZONE_HIGH)),
        (ALLOCATE, allocate(GENERATION_FILE, GENERATION_PAGE as u32, ZONE_HIGH)),
    ];
    if steps.iter().any(|step| matches!(step, Step::Pointer { to: TPM_LOG_FILE, .. })) {
        commands.push((ALLOCATE, allocate(TPM_LOG_FILE, 1, ZONE_HIGH)));
    }
    for step in steps {
        commands.push(match *step {
            Step::Pointer { file, to, at, len } => {
                (ADD_POINTER, [name(file), name(to), at.to_le_bytes().to_vec(), vec![len]].concat())
            }
            Step::Checksum { file, at, start, len } => {
                (ADD_CHECKSUM, [name(file), [at, start, len].map(u32::to_le_bytes).concat()].concat())
            }
        });
    }
    let told =
        [name(GENERATION_ADDRESS_FILE), name(GENERATION_FILE), [0u32, 0].map(u32::to_le_bytes).concat(), vec![8]];
    commands.push((WRITE_POINTER, told.concat()));
    let mut script = Vec::with_capacity(commands.len() * ENTRY);
    for (command, body) in commands {
        let start = script.len();
        script.extend(command.to_le_bytes());
        script.extend(body);
        script.resize(start + ENTRY, 0);
    }
    script
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Collects AML.
struct Sink(Vec<u8>);

impl AmlSink for Sink {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut sink = Sink(Vec::new());
    aml.to_aml_bytes(&mut sink);
    sink.0
}

/// AML made before.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Encodes at once, so that nothing has to outlive the whole tree.
fn encoded(aml: &dyn Aml) -> Raw {
    Raw(bytes(aml))
}

/// The IRQNoFlags descriptor (ACPI 6.5 §6.4.2.1), which the crate lacks.
struct IrqNoFlags(u8);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

/// An ISA or platform device with fixed resources.
fn fixed_device(path: &str, hid: &str, uid: u8, resources: Vec<&dyn Aml>) -> Raw {
    let (hid, status) = (EISAName::new(hid), 0x0fu8);
    let resources = ResourceTemplate::new(resources);
    encoded(&Device::new(
        path.into(),
        vec![
            &Name::new("_HID".into(), &hid),
            &Name::new("_UID".into(), &uid),
            &Name::new("_STA".into(), &status),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

/// The interrupt of every slot's and pin's INTx: slots 0 to 24 on GSI 20 to 23, the others on 16 to 19.
fn interrupt_routing() -> Raw {
    let mut table = PackageBuilder::new();
    let mut entries = Vec::new();
    for slot in 0..32u32 {
        for pin in 0..4u32 {
            let gsi = if slot < 25 { 20 + (slot + pin) % 4 } else { 16 + pin };
            let address = slot << 16 | 0xffff;
            entries.push(encoded(&Package::new(vec![&address, &pin, &ZERO, &gsi])));
        }
    }
    for entry in &entries {
        table.add_element(entry);
    }
    encoded(&table)
}

/// _OSC of a PCI Express root (PCI Firmware 3.2 §4.5): grants what the system asks for of the features that need no
/// help from firmware, and says so where it asks for more.
fn osc() -> Raw {
    let uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let (capabilities, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (third, granted, one) = (8u8, 0x1eu8, 1u8);
    let (bad_uuid, bad_revision, masked) = (0x04u8, 0x08u8, 0x10u8);
    let wrong_revision = NotEqual::new(&Arg(1), &one);
    let less_granted = NotEqual::new(&control, &Local(0));
    let known = Equal::new(&Arg(0), &uuid);
    encoded(&Method::new(
        Path::new("_OSC"),
        4,
        false,
        vec![
            &CreateDWordField::new(&capabilities, &Arg(3), &ZERO),
            &If::new(
                &known,
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &third),
                    &Store::new(&Local(0), &control),
                    &And::new(&Local(0), &Local(0), &granted),
                    &If::new(&wrong_revision, vec![&Or::new(&capabilities, &capabilities, &bad_revision)]),
                    &If::new(&less_granted, vec![&Or::new(&capabilities, &capabilities, &masked)]),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&Or::new(&capabilities, &capabilities, &bad_uuid)]),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// The page of the generation id, as firmware places it.
pub fn generation_page(id: &[u8; 16]) -> Vec<u8> {
    let mut page = vec![0; GENERATION_OFFSET as usize];
    page.extend(id);
    page.resize(GENERATION_PAGE as usize, 0);
    page
}

/// Where in the DSDT the page's address is: in its first object, whose name and prefix come before it.
const GENERATION_AT: u32 = 36 + 1 + 4 + 1;

/// The page's address as an object, to be filled in by the script.
fn generation_address() -> Raw {
    const NAME: u8 = 0x08;
    const DWORD: u8 = 0x0c;
    Raw([&[NAME][..], b"VGIA", &[DWORD, 0, 0, 0, 0]].concat())
}

/// The device whose ADDR says where the generation id is, and the event that notifies it.
fn generation_device() -> Raw {
    let (hid, cid, status, changed) = ("ORNG0001", "VM_Gen_Counter", 0x0fu8, 0x80u8);
    let (page, offset, zero) = (Path::new("\\VGIA"), GENERATION_OFFSET as u8, ZERO);
    let empty = Package::new(vec![&zero, &zero]);
    let element = Index::new(&zero, &Local(0), &zero);
    let address = Add::new(&element, &page, &offset);
    let steps: [&dyn Aml; 3] = [&Store::new(&Local(0), &empty), &address, &Return::new(&Local(0))];
    let addr = encoded(&Method::new(Path::new("ADDR"), 0, false, steps.to_vec()));
    let device = encoded(&Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &hid),
            &Name::new("_CID".into(), &cid),
            &Name::new("_DDN".into(), &cid),
            &Name::new("_STA".into(), &status),
            &addr,
        ],
    ));
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &changed);
    let name = format!("_E{GENERATION_EVENT:02X}");
    let method = Method::new(Path::new(&name), 0, false, vec![&notify]);
    let events = encoded(&Scope::new(Path::new("\\_GPE"), vec![&method]));
    Raw([device.0, events.0].concat())
}

fn dsdt(config: AcpiConfig) -> Sdt {
    let AcpiConfig { topology, low_top, ecam, tpm } = config;
    let ecam_end = ecam + ECAM_LEN as u32;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let resources = encoded(&ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0xff),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::new_io(0u16, 0x0cf7u16, None),
        &AddressSpace::new_io(0x0d00u16, 0xffffu16, None),
        &AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000u32, 0xb_ffffu32, None),
        &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, low_top, ecam - 1, None),
        &AddressSpace::new_memory(uncached, true, ecam_end, BARS_END as u32 - 1, None),
    ]));
    let com1 = fixed_device("COM1", "PNP0501", 1, vec![&IO::new(0x3f8, 0x3f8, 0, 8), &IrqNoFlags(4)]);
    let rtc = fixed_device("RTC_", "PNP0B00", 0, vec![&IO::new(0x70, 0x70, 1, 8), &IrqNoFlags(8)]);
    let ports: [&dyn Aml; 3] = [&IO::new(0x60, 0x60, 1, 1), &IO::new(0x64, 0x64, 1, 1), &IrqNoFlags(1)];
    let keyboard = fixed_device("KBD_", "PNP0303", 0, ports.to_vec());
    let mouse = fixed_device("MOU_", "PNP0F13", 0, vec![&IrqNoFlags(12)]);
    let (bridge_address, routing, osc) = (0x1f_0000u32, interrupt_routing(), osc());
    let isa = encoded(&Device::new(
        "ISA_".into(),
        vec![&Name::new("_ADR".into(), &bridge_address), &com1, &rtc, &keyboard, &mouse],
    ));
    let (express, conventional) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let root = encoded(&Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &express),
            &Name::new("_CID".into(), &conventional),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &routing),
            &osc,
            &isa,
        ],
    ));
    let board = fixed_device(
        "_SB_.MBRD",
        "PNP0C02",
        0,
        vec![
            &Memory32Fixed::new(true, ecam, ECAM_LEN as u32),
            &IO::new(PM_BASE, PM_BASE, 1, 0x80),
            &IO::new(0x510, 0x510, 1, 0x0c),
            &IO::new(0x4d0, 0x4d0, 1, 2),
        ],
    );
    let (two, zero) = (2u8, 0u8);
    let hibernate = Package::new(vec![&two, &two, &zero, &zero]);
    let off = Package::new(vec![&zero, &zero, &zero, &zero]);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    let (s4, s5) = (Name::new("_S4_".into(), &hibernate), Name::new("_S5_".into(), &off));
    for object in [&generation_address() as &dyn Aml, &root, &board, &generation_device(), &s4, &s5] {
        table.append_slice(&bytes(object));
    }
    if tpm.is_some() {
        table.append_slice(&bytes(&tpm_device()));
    }
    for cpu in 0..topology.cpus().unwrap_or(0) {
        let (path, hid) = (format!("_SB_.C{cpu:03X}"), "ACPI0007");
        table.append_slice(&bytes(&Device::new(
            Path::new(&path),
            vec![&Name::new("_HID".into(), &hid), &Name::new("_UID".into(), &cpu)],
        )));
    }
    table
}

/// The TPM as a device (TCG ACPI Specification 1.3 §8): its registers.
fn tpm_device() -> Raw {
    let (hid, uid, status) = ("MSFT0101", 1u8, 0x0fu8);
    let registers = Memory32Fixed::new(true, TPM, TPM_LEN);
    let resources = ResourceTemplate::new(vec![&registers]);
    encoded(&Device::new(
        "_SB_.TPM_".into(),
        vec![
            &Name::new("_HID".into(), &hid),
            &Name::new("_UID".into(), &uid),
            &Name::new("_STA".into(), &status),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

/// Where the log's address is in the TPM2 table.
const TPM2_LOG_ADDRESS: u32 = 68;

/// TPM2 (TCG ACPI Specification 1.3 §7.3, revision 4): a client's TPM that is started through its command response buffer.
fn tpm2(log: EventLog) -> Sdt {
    const COMMAND_RESPONSE_BUFFER: u32 = 7;
    let mut table = Sdt::new(*b"TPM2", 76, 4, OEM, OEM_TABLE, 1);
    table.write_u64(40, tpm_crb::ADDRESS + tpm_crb::CONTROL_AREA);
    table.write_u32(48, COMMAND_RESPONSE_BUFFER);
    // 12 bytes of parameters that this start method has not; then the log's least length and its address.
    if log == EventLog::Firmware {
        table.write_u32(64, TPM_LOG_LEN);
    }
    table
}

/// MADT (ACPI 6.5 §5.2.12).
fn madt(topology: Topology) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    let mut table = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, 1);
    table.write_u32(36, 0xfee0_0000);
    table.write_u32(40, PCAT_COMPAT);
    for cpu in 0..topology.cpus().unwrap_or(0) {
        table.append_slice(&[0, 8, cpu as u8, topology.apic_id(cpu) as u8, 1, 0, 0, 0]);
    }
    // I/O APIC 0 at 0xfec00000, GSIs from 0.
    table.append_slice(&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    // ISA IRQ 0 is GSI 2; IRQ 9, the SCI, is level-triggered and active high.
    table.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    table.append_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
    // NMI on LINT1 of every CPU.
    table.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    table
}

/// FADT (ACPI 6.5 §5.2.9).
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    /// WBINVD, PROC_C1, SLP_BUTTON, RTC_S4, RESET_REG_SUP, USE_PLATFORM_CLOCK; the power button is a fixed one.
    const FLAGS: u32 = 0x84a5;
    /// Legacy devices, and an i8042.
    const BOOT_ARCH: u16 = 3;
    const DESKTOP: u8 = 1;
    let gas =
        |offset: u16, bits: u8, access| GAS::new(GasSpace::SystemIo, bits, 0, access, u64::from(PM_BASE + offset));
    let port = |offset: u16| u32::from(PM_BASE + offset).into();
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1);
    fadt.preferred_pm_profile = DESKTOP;
    fadt.sci_int = 9.into();
    fadt.pm1a_evt_blk = port(0);
    fadt.pm1a_cnt_blk = port(4);
    fadt.pm_tmr_blk = port(8);
    fadt.gpe0_blk = port(0x20);
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len, fadt.gpe0_blk_len) = (4, 2, 4, 16);
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = 0x32;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.flags = FLAGS.into();
    fadt.reset_reg = GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, 0xcf9);
    fadt.reset_value = 0x0f;
    fadt.x_pm1a_evt_blk = gas(0, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = gas(4, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = gas(8, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = gas(0x20, 128, AccessSize::ByteAccess);
    fadt.firmware_ctrl = facs.into();
    fadt.x_firmware_ctrl = 0.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    bytes(&fadt.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPOLOGY: Topology = Topology { sockets: 1, cores: 3, threads: 1 };
    const CONFIG: AcpiConfig = AcpiConfig { topology: TOPOLOGY, low_top: 0x4000_0000, ecam: 0xb000_0000, tpm: None };

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_placed_table_is_found_from_the_root_pointer_and_sums_up_to_zero() {
        let base = 0x3fff_0000;
        let (tables, rsdp) = AcpiFiles::new(CONFIG).place(base);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let table = |address: u64| {
            let at = (address - base) as usize;
            let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
            &tables[at..at + len]
        };
        let xsdt = table(u64_at(&rsdp, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let listed: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(u64_at(entry, 0))).collect();
        let names: Vec<_> = listed.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"WAET"]);
        assert!(listed.iter().all(|t| sum(t) == 0));
        // The older list names the same tables.
        let pointer = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
        let rsdt = table(pointer(&rsdp[16..]));
        assert_eq!((&rsdt[..4], sum(rsdt)), (&b"RSDT"[..], 0));
        let same: Vec<_> = rsdt[36..].chunks(4).map(|entry| table(pointer(entry))).collect();
        assert_eq!(same, listed);
        let fadt = listed[0];
        let dsdt = table(u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let facs = u64::from(u32::from_le_bytes(fadt[36..40].try_into().unwrap()));
        assert_eq!(&table(facs)[..4], b"FACS");
        assert_eq!(facs % 64, 0);
    }

    #[test]
    fn the_table_of_the_tpm_leads_to_its_registers_and_to_the_log_where_firmware_writes_one() {
        for (log, len) in [(EventLog::Firmware, TPM_LOG_LEN), (EventLog::None, 0)] {
            let files = AcpiFiles::new(AcpiConfig { tpm: Some(log), ..CONFIG });
            let allocates =
                files.loader.chunks(ENTRY).any(|e| e[0] == 1 && e[4..].starts_with(TPM_LOG_FILE.as_bytes()));
            let points = files.loader.chunks(ENTRY).find(|e| e[0] == 2 && e[60..].starts_with(TPM_LOG_FILE.as_bytes()));
            assert_eq!((allocates, points.is_some()), (len > 0, len > 0));
            let at = files.tables.windows(4).position(|name| name == b"TPM2").unwrap();
            let table = &files.tables[at..at + 76];
            if let Some(entry) = points {
                let place = u32::from_le_bytes(entry[116..120].try_into().unwrap()) as usize;
                assert_eq!((place, entry[120]), (at + 68, 8));
            }
            assert_eq!((u64_at(table, 40), table[48], table[64..68] == len.to_le_bytes()), (0xfed4_0040, 7, true));
            assert_eq!(u64_at(table, 68), 0);
            assert!(files.tables.windows(8).any(|hid| hid == b"MSFT0101"));
            let (tables, _) = files.place(0x3fff_0000);
            assert_eq!(sum(&tables[at..at + 76]), 0);
        }
        let none = AcpiFiles::new(CONFIG);
        assert!(!none.tables.windows(8).any(|hid| hid == b"MSFT0101"));
    }

    #[test]
    fn the_dsdt_names_the_page_of_the_generation_id_behind_the_tables() {
        let files = AcpiFiles::new(CONFIG);
        let (base, len) = (0x3ff0_0000, files.placed_len());
        let (tables, _) = files.place(base);
        let name = tables.windows(5).position(|bytes| bytes == b"\x08VGIA").unwrap();
        let page = u32::from_le_bytes(tables[name + 6..name + 10].try_into().unwrap());
        assert_eq!(u64::from(page), base + len - 0x1000);
        assert!(tables.len() as u64 <= len - 0x1000);
        let content = generation_page(&[7; 16]);
        assert_eq!((content.len(), content[40..56].to_vec(), content[56]), (0x1000, vec![7; 16], 0));
    }

    #[test]
    fn the_dsdt_offers_to_switch_off_and_to_hibernate_but_no_other_sleep() {
        let files = AcpiFiles::new(CONFIG);
        let (tables, _) = files.place(0x3ff0_0000);
        let names = |state: u8| {
            let name = [0x08, b'_', b'S', b'0' + state, b'_'];
            tables.windows(name.len()).filter(|bytes| *bytes == name).count()
        };
        assert_eq!([1, 2, 3, 4, 5].map(names), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn the_size_does_not_depend_on_where_things_are() {
        let other = AcpiConfig { ecam: 0xe000_0000, low_top: 0x8000_0000, ..CONFIG };
        let (a, b) = (AcpiFiles::new(CONFIG), AcpiFiles::new(other));
        assert_eq!((a.tables.len(), a.loader), (b.tables.len(), b.loader));
        assert_ne!(a.tables, b.tables);
    }
}
