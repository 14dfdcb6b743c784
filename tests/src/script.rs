//! A guest of one boot sector (bios/) that does what a script says: video BIOS calls, ports, bytes in memory. It runs on
//! any KVM, in real mode, and says on the serial port how far it is.

use anyhow::{Context, Result, ensure};

const BOOT_SECTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/script.elf"));
const SECTOR: usize = 512;
/// Sectors of a cylinder, which a disk must have for its boot sector to be read.
const CYLINDER: usize = 63 * 16;
/// Where the script lies, and where the boot sector wants its length in sectors.
const SCRIPT: u16 = 0x1000;
const LENGTH: usize = 4;
/// The most a script may have: it is read to one segment.
const SCRIPT_LIMIT: usize = 0x1_0000;
/// COM1's data register.
const COM1: u16 = 0x3f8;

/// A command of the boot sector.
#[derive(Debug, Clone)]
pub enum Op {
    /// A video BIOS call with these registers; what comes back in AX must be `expect`, where that is not none.
    #[allow(missing_docs, reason = "the processor's registers")]
    Int10 { ax: u16, bx: u16, cx: u16, dx: u16, expect: Option<u16> },
    /// A call that is given bytes at ES:BP.
    #[allow(missing_docs, reason = "the processor's registers")]
    Int10Data { ax: u16, bx: u16, cx: u16, dx: u16, data: Vec<u8> },
    /// A byte to a port.
    Out8(u16, u8),
    /// A value to an index register, at a port, and the data register behind it.
    Index(u16, u8, u8),
    /// The same byte so many times.
    #[allow(missing_docs, reason = "what a memory access has")]
    Fill { segment: u16, offset: u16, count: u16, value: u8 },
    /// These bytes.
    #[allow(missing_docs, reason = "what a memory access has")]
    Copy { segment: u16, offset: u16, data: Vec<u8> },
    /// What is read must be this.
    #[allow(missing_docs, reason = "what a memory access has")]
    Read { segment: u16, offset: u16, expect: u8 },
    /// A byte is read, combined and written in one instruction.
    #[allow(missing_docs, reason = "what a memory access has")]
    Or { segment: u16, offset: u16, value: u8 },
    /// Each byte that comes on the serial port is sent back as two digits, until that is a `q`.
    Echo,
}

/// Sends a text on the serial port.
pub fn say(text: &str) -> Vec<Op> {
    text.bytes().map(|byte| Op::Out8(COM1, byte)).collect()
}

/// A script on its way to the disk, and what it sends.
#[derive(Debug, Default)]
pub struct Script {
    bytes: Vec<u8>,
    /// Bytes that calls are given, and where in the script their address goes.
    data: Vec<(usize, Vec<u8>)>,
    /// For each step: the bytes that come before its `R`, without what [`say`] says and [`Op::Echo`] sends; none where any
    /// will do.
    pub sent: Vec<Vec<Option<u8>>>,
}

impl Script {
    fn words(&mut self, op: u8, words: &[u16]) {
        self.bytes.push(op);
        self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// Adds commands. After them the guest sends an `R` and waits for any byte.
    pub fn step(&mut self, ops: &[Op]) -> Result<()> {
        let mut sent = Vec::new();
        for op in ops {
            match *op {
                Op::Int10 { ax, bx, cx, dx, expect } => {
                    self.words(1, &[ax, bx, cx, dx, 0, 0, 0]);
                    sent.extend(expect.map_or([None; 2], |ax| ax.to_le_bytes().map(Some)));
                }
                Op::Int10Data { ax, bx, cx, dx, ref data } => {
                    self.words(1, &[ax, bx, cx, dx, 0, 0, SCRIPT]);
                    // BP, before DI and ES.
                    self.data.push((self.bytes.len() - 6, data.clone()));
                    sent.extend([None; 2]);
                }
                Op::Out8(port, value) => {
                    self.words(2, &[port]);
                    self.bytes.push(value);
                }
                Op::Index(port, index, value) => self.words(3, &[port, u16::from_le_bytes([index, value])]),
                Op::Fill { segment, offset, count, value } => {
                    self.words(4, &[segment, offset, count]);
                    self.bytes.push(value);
                }
                Op::Copy { segment, offset, ref data } => {
                    let count = u16::try_from(data.len()).context("too many bytes for one copy")?;
                    self.words(5, &[segment, offset, count]);
                    self.bytes.extend(data);
                }
                Op::Read { segment, offset, expect } => {
                    self.words(6, &[segment, offset]);
                    sent.push(Some(expect));
                }
                Op::Or { segment, offset, value } => {
                    self.words(7, &[segment, offset]);
                    self.bytes.push(value);
                }
                Op::Echo => self.words(8, &[]),
            }
        }
        self.words(0, &[]);
        self.sent.push(sent);
        Ok(())
    }

    /// The disk with the boot sector and the script.
    pub fn disk(&self) -> Result<Vec<u8>> {
        let mut script = self.bytes.clone();
        for (place, data) in &self.data {
            let at = u16::try_from(script.len()).context("the script is too long")?;
            script[*place..place + 2].copy_from_slice(&at.to_le_bytes());
            script.extend(data);
        }
        ensure!(script.len() <= SCRIPT_LIMIT, "the script has {} bytes", script.len());
        // The program's only segment is the sector: its header is the first, with its place in the file at 8.
        let header = offset(32)?;
        let start = offset(header + 8)?;
        let mut disk = BOOT_SECTOR.get(start..start + SECTOR).context("the boot sector is cut off")?.to_vec();
        ensure!(disk.ends_with(&[0x55, 0xaa]), "this is no boot sector");
        let sectors = u16::try_from(script.len().div_ceil(SECTOR)).context("the script is too long")?;
        disk[LENGTH..LENGTH + 2].copy_from_slice(&sectors.to_le_bytes());
        disk.append(&mut script);
        disk.resize(CYLINDER * SECTOR, 0);
        Ok(disk)
    }
}

/// An offset in the ELF file of the boot sector.
fn offset(at: usize) -> Result<usize> {
    let bytes = BOOT_SECTOR.get(at..at + 8).context("the boot sector's file is cut off")?;
    Ok(usize::from_le_bytes(bytes.try_into()?))
}
