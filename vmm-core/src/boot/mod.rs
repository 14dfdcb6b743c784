//! What a machine finds at power-on: firmware, or a kernel placed by the monitor; the ACPI tables; the memory map.

pub mod acpi;
pub mod bios;
pub mod layout;
pub mod linux;
pub mod secure_boot;
pub mod smbios;
pub mod uefi;

use std::path::PathBuf;

/// Why nothing can be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be read.
    #[error("could not read the {what} {path}")]
    Read {
        /// What it is to the machine.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it is said to be.
    #[error("{path} can't be booted as a {what}: {why}")]
    Format {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No firmware is installed.
    #[error("{file} was not found in {searched}; install the package seabios, or name its folder in ORANGERY_FIRMWARE")]
    NoFirmware {
        /// The file.
        file: &'static str,
        /// Where it was looked for.
        searched: String,
    },
    /// No UEFI firmware is installed.
    #[error(
        "there is no UEFI firmware for this machine here{skipped}; install the package ovmf, or name a folder with it in ORANGERY_FIRMWARE"
    )]
    NoUefi {
        /// What is there and why it can't be used, or nothing.
        skipped: String,
    },
    /// None of the UEFI firmware enforces Secure Boot on this machine.
    #[error(
        "there is no UEFI firmware with Secure Boot for this machine here{skipped}; Debian 12's package ovmf has one"
    )]
    NoSecureBoot {
        /// What is there and why it can't be used, or nothing.
        skipped: String,
    },
    /// The variables have no keys, with which a firmware with Secure Boot checks nothing.
    #[error(
        "the variable store {path} has no Secure Boot keys, so that nothing would be checked; reset the machine's UEFI variables to start with Microsoft's"
    )]
    NoKeys {
        /// The store.
        path: PathBuf,
    },
    /// It does not fit in the machine's memory.
    #[error("{what} needs more memory than the machine has ({memory_mib} MiB); give it more")]
    NoRoom {
        /// What does not fit.
        what: &'static str,
        /// What the machine has.
        memory_mib: u64,
    },
}
