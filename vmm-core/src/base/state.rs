//! The contract of everything that is saved with a machine: state types of their own, versioned, and sections that say
//! whose they are.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A type that is written into checkpoints. It lives apart from the runtime type it describes.
pub trait SavedState: Serialize + DeserializeOwned + Send {
    /// Counts up when the meaning of the fields changes; a new version reads all old ones.
    const VERSION: u32;
}

impl SavedState for () {
    const VERSION: u32 = 0;
}

/// Raw bytes in a [`SavedState`]: written as one byte string, not as a list of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// One component's state in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Whose it is, like `pci-00:03.0-blk`.
    pub name: String,
    /// The [`SavedState::VERSION`] it was written with.
    pub version: u32,
    /// The state, CBOR.
    pub bytes: Vec<u8>,
}

/// Why a state can't be saved or restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is from another version.
    #[error("the state of {name} has version {found}; this program reads up to {known}")]
    Version {
        /// Whose state.
        name: String,
        /// Its version.
        found: u32,
        /// The newest that is understood.
        known: u32,
    },
    /// It can't be decoded, or holds values that no machine ever saved.
    #[error("the state of {name} is damaged: {why}")]
    Invalid {
        /// Whose state.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StateError {
    /// A state with impossible contents.
    pub fn invalid(name: impl Into<String>, why: impl ToString) -> StateError {
        StateError::Invalid { name: name.into(), why: why.to_string() }
    }
}

impl Section {
    /// Encodes a state.
    pub fn encode<S: SavedState>(name: &str, state: &S) -> Result<Section, StateError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(state, &mut bytes).map_err(|e| StateError::invalid(name, e))?;
        Ok(Section { name: name.into(), version: S::VERSION, bytes })
    }

    /// Decodes the state, if its version is known.
    pub fn decode<S: SavedState>(&self) -> Result<S, StateError> {
        if self.version > S::VERSION {
            return Err(StateError::Version { name: self.name.clone(), found: self.version, known: S::VERSION });
        }
        ciborium::from_reader(self.bytes.as_slice()).map_err(|e| StateError::invalid(&self.name, e))
    }
}

/// A part of the machine as its life sees it. Called from the control thread while no vCPU runs.
pub trait Component: Send + Sync {
    /// A name that is unique in the machine and stays the same over its life.
    fn name(&self) -> String;
    /// Stops all work for the guest and waits until it has stopped.
    fn pause(&self) {}
    /// Goes on.
    fn resume(&self) {}
    /// Back to the state after power-on. The component is paused.
    fn reset(&self);
    /// Its state. The component is paused.
    fn save(&self) -> Result<Section, StateError>;
    /// Takes over a state. The component is fresh and paused.
    fn restore(&self, section: &Section) -> Result<(), StateError>;
}
