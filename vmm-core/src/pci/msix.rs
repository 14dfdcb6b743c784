//! MSI-X: the table, the pending bits and the capability (PCI 3.0 §6.8.2).

use std::io;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::config::{ConfigSpace, cap, lock};
use crate::base::StateError;
use crate::hw::{MsiMessage, MsiRoute, MsiSink};

const ENTRY: usize = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// A function's MSI-X vectors.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    table: Mutex<Table>,
}

struct Table {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

#[derive(Default)]
struct Entry {
    /// Address low, address high, data, vector control.
    words: [u32; 4],
    pending: bool,
    /// Made when the vector is first unmasked; a function offers more vectors than a driver uses.
    route: Option<Arc<dyn MsiRoute>>,
}

/// What a checkpoint keeps of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<([u32; 4], bool)>,
}

impl Entry {
    fn masked(&self) -> bool {
        self.words[3] & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        MsiMessage { address: u64::from(self.words[0]) | u64::from(self.words[1]) << 32, data: self.words[2] }
    }

    /// Points the route at the message; false where the host can't route it.
    fn arm(&mut self, sink: &dyn MsiSink) -> bool {
        let route = match &self.route {
            Some(route) => route,
            None => match sink.route() {
                Ok(route) => self.route.insert(route),
                Err(_) => return false,
            },
        };
        route
            .set(MsiMessage { address: u64::from(self.words[0]) | u64::from(self.words[1]) << 32, data: self.words[2] })
            .is_ok()
    }

    fn fire(&mut self) {
        self.pending = false;
        if let Some(route) = &self.route {
            route.trigger();
        }
    }
}

impl Msix {
    /// `vectors` masked vectors.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Msix {
        let table = Table { entries: Vec::new(), enabled: false, masked: false };
        let msix = Msix { sink, table: Mutex::new(table) };
        lock(&msix.table).entries.resize_with(usize::from(vectors), Entry::default);
        msix.reset();
        msix
    }

    /// Adds the capability, with the table and pending bits at these offsets of a BAR. Returns where it is.
    pub fn add_capability(&self, config: &mut ConfigSpace, bar: u8, table: u32, pba: u32) -> usize {
        let vectors = lock(&self.table).entries.len() as u16;
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pba | u32::from(bar)).to_le_bytes());
        config.add_capability(cap::MSIX, &body, &[0x00, 0xc0])
    }

    /// Takes over the control word after the guest wrote configuration space.
    pub fn set_control(&self, control: u16) {
        let mut table = lock(&self.table);
        let (enabled, masked) = (control & CONTROL_ENABLE != 0, control & CONTROL_MASK_ALL != 0);
        if (table.enabled, table.masked) != (enabled, masked) {
            table.enabled = enabled;
            table.masked = masked;
            table.deliver_pending(&*self.sink);
        }
    }

    /// Whether the guest uses MSI-X rather than INTx.
    pub fn is_enabled(&self) -> bool {
        lock(&self.table).enabled
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        lock(&self.table).entries.len() as u16
    }

    /// Reads the table: u32 or u64 accesses, aligned.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = lock(&self.table);
        for (i, chunk) in data.chunks_mut(4).enumerate() {
            let at = offset as usize + 4 * i;
            let word = table.entries.get(at / ENTRY).map_or(0, |e| e.words[at % ENTRY / 4]);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }

    /// Writes the table: u32 or u64 accesses, aligned; others are dropped.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return;
        }
        let mut table = lock(&self.table);
        for (i, chunk) in data.chunks_exact(4).enumerate() {
            let at = offset as usize + 4 * i;
            // What was written before the table's end counts.
            let Some(entry) = table.entries.get_mut(at / ENTRY) else { break };
            let mut word = [0; 4];
            word.copy_from_slice(chunk);
            entry.words[at % ENTRY / 4] = u32::from_le_bytes(word);
            if !entry.masked() {
                entry.arm(&*self.sink);
            }
        }
        table.deliver_pending(&*self.sink);
    }

    /// Reads the pending bits.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let table = lock(&self.table);
        for (i, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + i) * 8;
            *byte =
                (0..8).filter(|bit| table.entries.get(first + bit).is_some_and(|e| e.pending)).map(|b| 1 << b).sum();
        }
    }

    /// Sends a vector's message, or notes it as pending while it is masked. A vector that is not there is nobody's.
    pub fn trigger(&self, vector: u16) {
        let mut table = lock(&self.table);
        let open = table.enabled && !table.masked;
        if let Some(entry) = table.entries.get_mut(usize::from(vector)) {
            if open && !entry.masked() {
                entry.fire();
            } else {
                entry.pending = true;
            }
        }
    }

    /// Back to power-on: all masked, nothing pending.
    pub fn reset(&self) {
        let mut table = lock(&self.table);
        table.enabled = false;
        table.masked = false;
        for entry in &mut table.entries {
            entry.words = [0, 0, 0, VECTOR_MASKED];
            entry.pending = false;
        }
    }

    /// What a checkpoint keeps; the control word is in configuration space.
    pub fn save(&self) -> MsixState {
        MsixState { entries: lock(&self.table).entries.iter().map(|e| (e.words, e.pending)).collect() }
    }

    /// Takes over a table; `control` is the control word of the restored configuration space.
    pub fn restore(&self, state: &MsixState, control: u16) -> Result<(), StateError> {
        {
            let mut table = lock(&self.table);
            if state.entries.len() != table.entries.len() {
                return Err(StateError::invalid("MSI-X table", format!("it has {} vectors", state.entries.len())));
            }
            for (entry, &(words, pending)) in table.entries.iter_mut().zip(&state.entries) {
                entry.words = words;
                entry.pending = pending;
                if !entry.masked() && entry.message().address != 0 && !entry.arm(&*self.sink) {
                    let why = io::Error::last_os_error();
                    return Err(StateError::invalid("MSI-X table", format!("the host can't route a vector: {why}")));
                }
            }
        }
        self.set_control(control);
        Ok(())
    }
}

impl Table {
    fn deliver_pending(&mut self, sink: &dyn MsiSink) {
        if !self.enabled || self.masked {
            return;
        }
        for entry in &mut self.entries {
            if entry.pending && !entry.masked() && entry.arm(sink) {
                entry.fire();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::FakeMsi;

    fn msix() -> (Msix, Arc<FakeMsi>) {
        let sink = Arc::new(FakeMsi::default());
        (Msix::new(3, sink.clone()), sink)
    }

    fn program(msix: &Msix, vector: u64, data: u32) {
        msix.write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &[0; 4]);
    }

    #[test]
    fn a_vector_that_is_unmasked_by_a_write_over_the_table_s_end_sends_what_is_pending() {
        let (msix, sink) = msix();
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(2 * 16, &0xfee0_0000u64.to_le_bytes());
        msix.trigger(2);
        assert_eq!(sink.take(), []);
        msix.write_table(2 * 16 + 12, &[0; 8]);
        assert_eq!(sink.take(), [MsiMessage { address: 0xfee0_0000, data: 0 }]);
    }

    #[test]
    fn an_unmasked_vector_sends_its_message() {
        let (msix, sink) = msix();
        msix.set_control(CONTROL_ENABLE);
        program(&msix, 1, 0x41);
        msix.trigger(1);
        msix.trigger(7);
        assert_eq!(sink.take(), [MsiMessage { address: 0xfee0_0000, data: 0x41 }]);
    }

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked() {
        let (msix, sink) = msix();
        program(&msix, 2, 0x42);
        msix.trigger(2);
        let mut pba = [0; 8];
        msix.read_pba(0, &mut pba);
        assert_eq!((pba[0], sink.take().len()), (4, 0));
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert!(sink.take().is_empty());
        msix.set_control(CONTROL_ENABLE);
        msix.read_pba(0, &mut pba);
        assert_eq!((pba[0], sink.take().len()), (0, 1));
    }

    #[test]
    fn a_saved_table_goes_on_where_it_was() {
        let (msix, _) = msix();
        msix.set_control(CONTROL_ENABLE);
        program(&msix, 0, 0x40);
        msix.trigger(1);
        let state = msix.save();
        let (other, sink) = self::msix();
        other.restore(&state, CONTROL_ENABLE).unwrap();
        assert_eq!(other.save(), state);
        other.trigger(0);
        assert_eq!(sink.take().len(), 1);
        assert!(Msix::new(1, sink).restore(&state, 0).is_err());
    }
}
