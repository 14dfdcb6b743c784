//! The firmware configuration device of QEMU (its docs/specs/fw_cfg.rst) at ports 0x510 to 0x51b: named files that
//! tell SeaBIOS and OVMF what machine this is, and give them its ACPI and SMBIOS tables.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::lock;
use crate::base::{Component, GuestAddress, GuestMemory, SavedState, Section, StateError};
use crate::hw::{Action, BusDevice, ProblemSink};

/// Well-known keys.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// What the device can do, u32.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// RAM, bytes, u64.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1: no screen, the BIOS shows its text on COM1, u16.
    pub const NOGRAPHIC: u16 = 0x04;
    /// CPUs that start with the machine, u16.
    pub const NB_CPUS: u16 = 0x05;
    /// NUMA topology, u64s.
    pub const NUMA: u16 = 0x0d;
    /// Whether to offer the boot menu, u16.
    pub const BOOT_MENU: u16 = 0x0e;
    /// The most CPUs that there can be, u16.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first file.
    pub const FILE_FIRST: u16 = 0x20;
    /// On x86: the PIT's interrupt 0 is the I/O APIC's input 2, u32.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// The traditional interface and DMA.
const ID_FEATURES: u32 = 1 | 2;
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// A directory entry: size, key, reserved, name.
const NAME_LEN: usize = 56;
const DIR_ENTRY: usize = 4 + 2 + 2 + NAME_LEN;
/// The most files: their keys stay below the range of write channels.
const MAX_FILES: usize = 0x1000;
/// The most bytes of one DMA transfer: no item is larger, and a guest can't keep a CPU busy in here for long.
const MAX_TRANSFER: u32 = 16 << 20;

mod dma {
    pub const ERROR: u32 = 1;
    pub const READ: u32 = 2;
    pub const SKIP: u32 = 4;
    pub const SELECT: u32 = 8;
    pub const WRITE: u32 = 16;
}

/// Why an item can't be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name does not fit the directory.
    #[error("the firmware file name \"{0}\" is not 1 to 55 ASCII characters")]
    Name(String),
    /// There is one already.
    #[error("there are two firmware files \"{0}\"")]
    Duplicate(String),
    /// The directory is full.
    #[error("there are more than {MAX_FILES} firmware files")]
    TooMany,
    /// The contents are larger than a transfer.
    #[error("the firmware file \"{name}\" is larger than {} MiB", MAX_TRANSFER >> 20)]
    TooLarge {
        /// Its name.
        name: String,
    },
}

/// Makes the contents of a group of files, in the order in which they were named.
type Make = Box<dyn Fn() -> Result<Vec<Vec<u8>>, String> + Send>;

enum Content {
    Fixed(Vec<u8>),
    Writable { initial: Vec<u8>, now: Vec<u8> },
    Lazy { group: usize, index: usize },
    Answer { to: String, give: fn(&[u8]) -> u8, given: [u8; 1] },
}

struct Group {
    make: Make,
    /// Names and declared sizes.
    files: Vec<(String, usize)>,
    made: Option<Vec<Vec<u8>>>,
}

/// The items that a [`FwCfg`] is to have.
#[derive(Default)]
pub struct FwCfgItems {
    items: BTreeMap<u16, Vec<u8>>,
    /// Sorted by name, so that a file's key depends on nothing but the set of names.
    files: BTreeMap<String, Content>,
    groups: Vec<Group>,
}

impl FwCfgItems {
    /// Sets the item of a well-known key (see [`key`]).
    pub fn item(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.insert(key, bytes);
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let size = bytes.len();
        self.insert(name, size, Content::Fixed(bytes))
    }

    /// Adds a file that the guest may overwrite, but not resize; see [`FwCfg::contents`].
    pub fn writable_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let size = bytes.len();
        self.insert(name, size, Content::Writable { initial: bytes.clone(), now: bytes })
    }

    /// Adds a file of one byte: what `give` makes of what the guest has written into the writable file `to` when it selects this
    /// one.
    pub fn answer(&mut self, name: &str, to: &str, give: fn(&[u8]) -> u8) -> Result<(), FwCfgError> {
        self.insert(name, 1, Content::Answer { to: to.into(), give, given: [0] })
    }

    /// Adds files of the given sizes whose contents are made together, when the guest first selects one of them after
    /// a reset; it knows the sizes before that. What is made shorter is followed by zeroes.
    pub fn lazy_files(
        &mut self,
        files: &[(&str, usize)],
        make: impl Fn() -> Result<Vec<Vec<u8>>, String> + Send + 'static,
    ) -> Result<(), FwCfgError> {
        let group = self.groups.len();
        let owned = files.iter().map(|&(name, size)| (name.to_owned(), size)).collect();
        self.groups.push(Group { make: Box::new(make), files: owned, made: None });
        for (index, &(name, size)) in files.iter().enumerate() {
            self.insert(name, size, Content::Lazy { group, index })?;
        }
        Ok(())
    }

    fn insert(&mut self, name: &str, size: usize, content: Content) -> Result<(), FwCfgError> {
        if name.is_empty() || name.len() >= NAME_LEN || !name.is_ascii() || name.contains('\0') {
            return Err(FwCfgError::Name(name.into()));
        }
        if size > MAX_TRANSFER as usize {
            return Err(FwCfgError::TooLarge { name: name.into() });
        }
        if self.files.len() == MAX_FILES {
            return Err(FwCfgError::TooMany);
        }
        match self.files.insert(name.into(), content) {
            None => Ok(()),
            Some(_) => Err(FwCfgError::Duplicate(name.into())),
        }
    }
}

/// The device. Its range is 12 ports from 0x510 on.
pub struct FwCfg {
    memory: GuestMemory,
    problems: ProblemSink,
    state: Mutex<State>,
}

struct State {
    items: BTreeMap<u16, Vec<u8>>,
    /// In the order of their keys, which count from [`key::FILE_FIRST`].
    files: Vec<(String, Content)>,
    groups: Vec<Group>,
    selected: u16,
    offset: u32,
    dma_address: u64,
}

/// What a checkpoint keeps of the device: what the guest did, not what the machine put in.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    selected: u16,
    offset: u32,
    dma_address: u64,
    made: Vec<Option<Vec<Vec<u8>>>>,
    written: Vec<(String, Vec<u8>)>,
}

impl SavedState for FwCfgState {
    const VERSION: u32 = 1;
}

impl State {
    /// The contents of the selected item; nothing if there is no such item.
    fn bytes(&self) -> &[u8] {
        let index = self.selected.checked_sub(key::FILE_FIRST).map(usize::from);
        match index.and_then(|i| self.files.get(i)) {
            Some((_, Content::Fixed(bytes) | Content::Writable { now: bytes, .. })) => bytes,
            Some((_, Content::Lazy { group, index })) => {
                let made = self.groups.get(*group).and_then(|g| g.made.as_ref()).and_then(|m| m.get(*index));
                made.map_or(&[], Vec::as_slice)
            }
            Some((_, Content::Answer { given, .. })) => given,
            None => self.items.get(&self.selected).map_or(&[], Vec::as_slice),
        }
    }

    /// What of the selected item comes after the offset.
    fn rest(&self) -> &[u8] {
        self.bytes().get(self.offset as usize..).unwrap_or_default()
    }

    /// The part of the selected item that the guest may overwrite.
    fn writable_rest(&mut self) -> Option<&mut [u8]> {
        let index = usize::from(self.selected.checked_sub(key::FILE_FIRST)?);
        match self.files.get_mut(index) {
            Some((_, Content::Writable { now, .. })) => now.get_mut(self.offset as usize..),
            _ => None,
        }
    }

    fn select(&mut self, selected: u16, problem: impl FnOnce(String)) {
        self.selected = selected;
        self.offset = 0;
        let index = selected.checked_sub(key::FILE_FIRST).map(usize::from);
        if let Some(&(_, Content::Lazy { group, .. })) = index.and_then(|i| self.files.get(i))
            && let Some(group) = self.groups.get_mut(group)
            && group.made.is_none()
            && let Err(why) = group.make()
        {
            problem(why);
        }
        self.give_answer();
    }

    /// Makes the selected file's contents, if it is an answer.
    fn give_answer(&mut self) {
        let Some(index) = self.selected.checked_sub(key::FILE_FIRST).map(usize::from) else { return };
        let Some((_, Content::Answer { to, give, .. })) = self.files.get(index) else { return };
        let asked = self.files.iter().find_map(|(name, content)| match content {
            Content::Writable { now, .. } if name == to => Some(now.as_slice()),
            _ => None,
        });
        let answer = give(asked.unwrap_or_default());
        if let Some((_, Content::Answer { given, .. })) = self.files.get_mut(index) {
            *given = [answer];
        }
    }
}

impl Group {
    /// Makes the files. On failure they are empty until the next reset: asking again would fail again.
    fn make(&mut self) -> Result<(), String> {
        let made = (self.make)();
        let files = self.made.insert(vec![Vec::new(); self.files.len()]);
        for ((file, bytes), (name, size)) in files.iter_mut().zip(made?).zip(&self.files) {
            if bytes.len() > *size {
                return Err(format!("{name} has {} bytes where {size} were announced to the guest", bytes.len()));
            }
            *file = bytes;
        }
        Ok(())
    }
}

impl FwCfg {
    /// A device with these items, and the signature, the feature bits and the directory.
    pub fn new(memory: GuestMemory, items: FwCfgItems, problems: ProblemSink) -> FwCfg {
        let FwCfgItems { mut items, files, groups } = items;
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        for ((name, content), key) in files.iter().zip(key::FILE_FIRST..) {
            let size = match content {
                Content::Fixed(bytes) | Content::Writable { now: bytes, .. } => bytes.len(),
                Content::Lazy { group, index } => groups[*group].files[*index].1,
                Content::Answer { given, .. } => given.len(),
            };
            let end = directory.len() + DIR_ENTRY;
            directory.extend((size as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name.as_bytes());
            directory.resize(end, 0);
        }
        items.insert(key::SIGNATURE, b"QEMU".to_vec());
        items.insert(key::ID, ID_FEATURES.to_le_bytes().to_vec());
        items.insert(key::FILE_DIR, directory);
        let files = files.into_iter().collect();
        let state = State { items, files, groups, selected: 0, offset: 0, dma_address: 0 };
        FwCfg { memory, problems, state: Mutex::new(state) }
    }

    /// What a file holds now: for a writable one, what the guest wrote.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        match &state.files.iter().find(|(n, _)| n == name)?.1 {
            Content::Fixed(bytes) | Content::Writable { now: bytes, .. } => Some(bytes.clone()),
            Content::Lazy { group, index } => state.groups[*group].made.as_ref()?.get(*index).cloned(),
            Content::Answer { given, .. } => Some(given.to_vec()),
        }
    }

    fn select(&self, state: &mut State, selected: u16) {
        state.select(selected, |why| {
            (self.problems)("fw-cfg", format!("could not make the tables for the firmware: {why}"));
        });
    }

    /// Does what the block at `address` says, and writes there how it went.
    fn run_dma(&self, state: &mut State, address: u64) {
        let address = GuestAddress(address);
        let mut block = [0; 16];
        let outcome = match self.memory.read(address, &mut block) {
            Ok(()) => self.transfer(state, &block),
            Err(_) => None,
        };
        let status = if outcome.is_some() { 0 } else { dma::ERROR };
        // A block outside of RAM gets no answer: there is nowhere to put it.
        let _ = self.memory.write(address, &status.to_be_bytes());
    }

    /// `None`: the error bit.
    fn transfer(&self, state: &mut State, block: &[u8; 16]) -> Option<()> {
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = *block;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        let address = GuestAddress(u64::from_be_bytes(address));
        if control & dma::SELECT != 0 {
            self.select(state, (control >> 16) as u16);
        }
        if control & (dma::READ | dma::WRITE) != 0 && len > MAX_TRANSFER {
            return None;
        }
        if control & dma::READ != 0 {
            let rest = state.rest();
            let copied = rest.len().min(len as usize);
            self.memory.check(address, len as usize).ok()?;
            self.memory.write(address, &rest[..copied]).ok()?;
            if copied < len as usize {
                self.memory.fill(GuestAddress(address.0 + copied as u64), len as usize - copied, 0).ok()?;
            }
        } else if control & dma::WRITE != 0 {
            let into = state.writable_rest()?.get_mut(..len as usize)?;
            self.memory.read(address, into).ok()?;
        } else if control & dma::SKIP == 0 {
            return Some(());
        }
        state.offset = state.offset.saturating_add(len);
        Some(())
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.state);
        match offset {
            1 => {
                for byte in data {
                    *byte = state.rest().first().copied().unwrap_or(0);
                    state.offset = state.offset.saturating_add(1);
                }
            }
            4..12 => {
                for (byte, &from) in data.iter_mut().zip(&DMA_SIGNATURE[offset as usize - 4..]) {
                    *byte = from;
                }
            }
            _ => (),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut state = lock(&self.state);
        match (offset, data) {
            (0, &[low, high]) => self.select(&mut state, u16::from_le_bytes([low, high])),
            (4, &[a, b, c, d]) => {
                state.dma_address = u64::from(u32::from_be_bytes([a, b, c, d])) << 32;
            }
            (8, &[a, b, c, d]) => {
                let address = state.dma_address | u64::from(u32::from_be_bytes([a, b, c, d]));
                // The high half counts for one operation only.
                state.dma_address = 0;
                self.run_dma(&mut state, address);
            }
            _ => (),
        }
        None
    }
}

impl Component for FwCfg {
    fn name(&self) -> String {
        "fw-cfg".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.selected = 0;
        state.offset = 0;
        state.dma_address = 0;
        for (_, content) in &mut state.files {
            if let Content::Writable { initial, now } = content {
                now.clone_from(initial);
            }
        }
        for group in &mut state.groups {
            group.made = None;
        }
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = lock(&self.state);
        let State { items: _, files, groups, selected, offset, dma_address } = &*state;
        let written = files.iter().filter_map(|(name, content)| match content {
            Content::Writable { now, initial } if now != initial => Some((name.clone(), now.clone())),
            _ => None,
        });
        let kept = FwCfgState {
            selected: *selected,
            offset: *offset,
            dma_address: *dma_address,
            made: groups.iter().map(|g| g.made.clone()).collect(),
            written: written.collect(),
        };
        Section::encode(&self.name(), &kept)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let FwCfgState { selected, offset, dma_address, made, written } = section.decode()?;
        let wrong = |why: String| Err(StateError::invalid(self.name(), why));
        let mut state = lock(&self.state);
        if made.len() != state.groups.len() {
            return wrong(format!("it has {} groups of tables, this machine {}", made.len(), state.groups.len()));
        }
        for (group, made) in state.groups.iter_mut().zip(made) {
            if let Some(made) = &made {
                let fits = made.len() == group.files.len()
                    && made.iter().zip(&group.files).all(|(bytes, (_, size))| bytes.len() <= *size);
                if !fits {
                    return wrong("its tables are not those that were announced to the guest".into());
                }
            }
            group.made = made;
        }
        for (name, bytes) in written {
            match state.files.iter_mut().find(|(n, _)| *n == name) {
                Some((_, Content::Writable { now, .. })) if now.len() == bytes.len() => *now = bytes,
                _ => return wrong(format!("the guest can't have written {} bytes to \"{name}\"", bytes.len())),
            }
        }
        state.selected = selected;
        state.offset = offset;
        state.dma_address = dma_address;
        state.give_answer();
        Ok(())
    }
}

#[cfg(test)]
#[path = "fw_cfg_tests.rs"]
mod tests;
