//! SeaBIOS: found where distributions install it, shown below 4 GiB, copied below 1 MiB.

use std::path::{Path, PathBuf};

use super::BootError;

/// Where distributions put SeaBIOS and its VGA option ROMs.
const FOLDERS: [&str; 3] = ["/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-kvm"];
/// The system firmware.
const BIOS: &str = "bios-256k.bin";
/// The video BIOS of the VGA-class virtio function.
const VGA_BIOS: &str = "vgabios-virtio.bin";

/// SeaBIOS and its video BIOS.
#[derive(Debug, Clone)]
pub struct Bios {
    /// The system firmware: 256 KiB that end at 4 GiB.
    pub system: Vec<u8>,
    /// The video BIOS.
    pub video: Vec<u8>,
}

/// What of the end of the system firmware is copied below 1 MiB at every reset.
pub const SHADOW_LEN: usize = 128 << 10;

impl Bios {
    /// Finds and reads both images: in `ORANGERY_FIRMWARE`, else where distributions put them.
    pub fn find() -> Result<Bios, BootError> {
        let own = std::env::var_os("ORANGERY_FIRMWARE").map(PathBuf::from);
        let folders: Vec<PathBuf> = match own {
            Some(folder) => vec![folder],
            None => FOLDERS.iter().map(PathBuf::from).collect(),
        };
        let system = read(BIOS, &folders)?;
        if system.len() < SHADOW_LEN || !system.len().is_multiple_of(0x1000) || system.len() > 4 << 20 {
            let path = folders[0].join(BIOS);
            return Err(BootError::Format { what: "BIOS", path, why: format!("it has {} bytes", system.len()) });
        }
        Ok(Bios { system, video: read(VGA_BIOS, &folders)? })
    }

    /// The part that is copied below 1 MiB.
    pub fn shadow(&self) -> &[u8] {
        &self.system[self.system.len() - SHADOW_LEN..]
    }
}

fn read(file: &'static str, folders: &[PathBuf]) -> Result<Vec<u8>, BootError> {
    let Some(path) = folders.iter().map(|f| f.join(file)).find(|p| Path::exists(p)) else {
        let searched = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(BootError::NoFirmware { file, searched });
    };
    std::fs::read(&path).map_err(|source| BootError::Read { what: "firmware", path, source })
}
