//! One image of a chain: a qcow2 image with its tables, or a raw one.

use std::sync::Arc;

use super::format::Header;
use super::table::{Found, Map};
use crate::backend::disk::DiskError;
use crate::backend::disk::image::Image;

/// See the module.
pub struct Layer {
    pub image: Arc<Image>,
    /// Bytes of its virtual disk.
    pub size: u64,
    pub kind: Kind,
}

/// What is in the file.
pub enum Kind {
    /// The disk's bytes.
    Raw,
    /// Tables and clusters.
    Qcow2(Box<Header>, Map),
}

impl Layer {
    /// Where the bytes from `offset` on are, at most `len` of them, which are inside this layer.
    pub fn find(&mut self, offset: u64, len: u64) -> Result<Found, DiskError> {
        match &mut self.kind {
            Kind::Raw => Ok(Found::Data { at: offset, own: true, len }),
            Kind::Qcow2(_, map) => map.find(offset, len),
        }
    }

    pub fn map(&mut self) -> Option<&mut Map> {
        match &mut self.kind {
            Kind::Raw => None,
            Kind::Qcow2(_, map) => Some(map),
        }
    }

    pub fn header(&self) -> Option<&Header> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Qcow2(header, _) => Some(header),
        }
    }
}
