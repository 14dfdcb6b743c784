//! The machine's generation id (Microsoft, "Virtual Machine Generation ID"): a number in the guest's memory that changes
//! when the guest is not alone with its past any more (it was restored, or copied), so that it makes new random numbers.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::base::{Component, GuestAddress, GuestMemory, SavedState, Section, StateError};
use crate::boot::{acpi, layout};
use crate::devices::legacy::{FwCfg, PmBlock};

/// 16 random bytes.
pub type Guid = [u8; 16];

/// What a checkpoint keeps.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GenerationState {
    id: Guid,
}

impl SavedState for GenerationState {
    const VERSION: u32 = 1;
}

/// Where firmware tells that it has put the id.
enum Place {
    /// The monitor put it there itself.
    Known,
    /// By a file that firmware writes.
    Told(OnceLock<Arc<FwCfg>>),
}

/// See the module.
pub(super) struct Generation {
    id: Mutex<Guid>,
    memory: GuestMemory,
    power: Arc<PmBlock>,
    place: Place,
}

impl Generation {
    /// An id that nobody had before. With `firmware`, that places it; [`Generation::connect`] says how it tells where.
    pub(super) fn new(id: Guid, memory: &GuestMemory, power: Arc<PmBlock>, firmware: bool) -> Generation {
        let place = if firmware { Place::Told(OnceLock::new()) } else { Place::Known };
        Generation { id: Mutex::new(id), memory: memory.clone(), power, place }
    }

    /// Firmware writes to this device where it has put the id.
    pub(super) fn connect(&self, fw_cfg: Arc<FwCfg>) {
        if let Place::Told(place) = &self.place {
            // There is one device: it is connected once.
            let _ = place.set(fw_cfg);
        }
    }

    /// The id now.
    pub(super) fn id(&self) -> Guid {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets another id and tells the guest, if it has got as far as to know of the first.
    pub(super) fn renew(&self, id: Guid) {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        if let Some(page) = self.page() {
            // A guest that says that the page is outside RAM hears of nothing.
            let _ = self.memory.write(GuestAddress(page.saturating_add(acpi::GENERATION_OFFSET)), &id);
            self.power.raise_event(acpi::GENERATION_EVENT);
        }
    }

    /// The guest's page with the id, if it has one yet.
    fn page(&self) -> Option<u64> {
        match &self.place {
            Place::Known => Some(layout::generation_page(&self.memory)),
            Place::Told(fw_cfg) => {
                let written = fw_cfg.get()?.contents(acpi::GENERATION_ADDRESS_FILE)?;
                let address = u64::from_le_bytes(written.try_into().ok()?);
                (address != 0).then_some(address)
            }
        }
    }
}

impl Component for Generation {
    fn name(&self) -> String {
        "generation".into()
    }

    /// The same machine goes on: the id stays.
    fn reset(&self) {}

    fn save(&self) -> Result<Section, StateError> {
        Section::encode(&self.name(), &GenerationState { id: self.id() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let GenerationState { id } = section.decode()?;
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InlineExecutor;
    use crate::devices::legacy::{FwCfgItems, HostClock};
    use crate::hw::BusDevice;
    use crate::testkit::FakeLine;

    const MIB: u64 = 1 << 20;

    fn generation(firmware: bool) -> (GuestMemory, FakeLine, Generation) {
        let (memory, line) = (GuestMemory::new(16 * MIB).unwrap(), FakeLine::default());
        let executor = Arc::new(InlineExecutor::new().unwrap());
        let power = PmBlock::new(Arc::new(HostClock), Arc::new(line.clone()), executor).unwrap();
        // The guest enables the event.
        power.write(0x28, &[1 << acpi::GENERATION_EVENT]);
        let generation = Generation::new([1; 16], &memory, Arc::new(power), firmware);
        (memory, line, generation)
    }

    fn seen(memory: &GuestMemory, page: u64) -> Guid {
        memory.read_obj::<Guid>(GuestAddress(page + acpi::GENERATION_OFFSET)).unwrap()
    }

    #[test]
    fn a_new_id_is_in_the_guest_s_memory_and_raises_the_event() {
        let (memory, line, generation) = generation(false);
        assert!(!line.level());
        generation.renew([2; 16]);
        assert_eq!((seen(&memory, 16 * MIB - 0x1000), generation.id()), ([2; 16], [2; 16]));
        assert!(line.level());
        generation.power.write(0x20, &[1 << acpi::GENERATION_EVENT]);
        assert!(!line.level());
    }

    #[test]
    fn firmware_that_has_not_told_where_the_id_is_hears_of_none() {
        let (memory, line, generation) = generation(true);
        let mut items = FwCfgItems::default();
        items.writable_file(acpi::GENERATION_ADDRESS_FILE, vec![0; 8]).unwrap();
        let fw_cfg = Arc::new(FwCfg::new(memory.clone(), items, Arc::new(|_, _| ())));
        generation.connect(fw_cfg.clone());
        generation.renew([2; 16]);
        assert_eq!((generation.id(), line.level()), ([2; 16], false));
        // What firmware does for the script's last command: a DMA write to the file.
        let tell = |address: u64| {
            memory.write(GuestAddress(0x200), &address.to_le_bytes()).unwrap();
            let control = 0x20u32 << 16 | 8 | 16;
            let block = [&control.to_be_bytes()[..], &8u32.to_be_bytes(), &0x200u64.to_be_bytes()].concat();
            memory.write(GuestAddress(0x100), &block).unwrap();
            fw_cfg.write(8, &0x100u32.to_be_bytes());
            assert_eq!(memory.read_obj::<u32>(GuestAddress(0x100)).unwrap(), 0);
        };
        tell(0x8000);
        generation.renew([3; 16]);
        assert_eq!((seen(&memory, 0x8000), line.level()), ([3; 16], true));
        // A hostile one.
        for address in [u64::MAX, 16 * MIB, 16 * MIB - 50] {
            tell(address);
            generation.renew([4; 16]);
        }
        assert_eq!(generation.id(), [4; 16]);
    }

    #[test]
    fn the_id_survives_a_reset_and_a_checkpoint() {
        let (_, _, generation) = generation(false);
        generation.renew([5; 16]);
        generation.reset();
        let section = generation.save().unwrap();
        let (_, _, other) = self::generation(false);
        other.restore(&section).unwrap();
        assert_eq!(other.id(), [5; 16]);
    }
}
