//! Histograms as text: HdrHistogram's V2 format, deflated, in base64, which the tools of every
//! language read. Named here only: the serialization of `hdrhistogram`, and `base64`.

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use crate::tally::histogram;

/// Longer than any histogram of ours.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// A histogram of nanoseconds in base64.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Encoded(String);

impl Encoded {
    /// Encodes a histogram.
    pub(crate) fn of(histogram_ns: &Histogram<u64>) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram_ns, &mut bytes)
            .map_err(|error| anyhow!("a histogram cannot be encoded: {error}"))?;
        Ok(Self(STANDARD.encode(bytes)))
    }

    /// Encodes a histogram that holds something.
    pub(crate) fn unless_empty(histogram_ns: &Histogram<u64>) -> anyhow::Result<Option<Self>> {
        if histogram_ns.is_empty() { Ok(None) } else { Self::of(histogram_ns).map(Some) }
    }

    /// Adds what it holds to a histogram of ours.
    pub(crate) fn add_to(&self, sum_ns: &mut Histogram<u64>) -> anyhow::Result<()> {
        if self.0.len() > TEXT_BYTES_MAX {
            bail!("a histogram of {} bytes is too long", self.0.len());
        }
        let bytes = STANDARD.decode(&self.0).context("a histogram is not base64")?;
        let decoded: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow!("a histogram is not HdrHistogram V2: {error}"))?;
        sum_ns.add(&decoded).map_err(|error| anyhow!("a histogram does not fit: {error}"))
    }

    /// Decodes it.
    pub(crate) fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        let mut decoded = histogram()?;
        self.add_to(&mut decoded)?;
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_its_encoding() {
        let mut original = histogram().unwrap();
        for ns in [1, 999, 50_000, 50_000, 1_000_000_000, 3_600_000_000_000] {
            original.record(ns).unwrap();
        }
        let encoded = Encoded::of(&original).unwrap();
        assert!(encoded.0.starts_with("HISTF"), "the cookie of V2 deflate: {}", encoded.0);
        assert_eq!(encoded.decode().unwrap(), original);
        let mut twice = original.clone();
        encoded.add_to(&mut twice).unwrap();
        assert_eq!(twice.len(), 12);
    }

    #[test]
    fn a_damaged_histogram_is_an_error_or_another_histogram_but_no_panic() {
        let mut original = histogram().unwrap();
        original.record_n(50_000, 77).unwrap();
        let Encoded(text) = Encoded::of(&original).unwrap();
        for at in 0..text.len() {
            for damaged in [format!("{}A{}", &text[..at], &text[at + 1..]), text[..at].to_owned()] {
                let _ = Encoded(damaged).decode();
            }
        }
        for text in ["", "!", "AAAA", "HISTFAAA"] {
            assert!(Encoded(text.to_owned()).decode().is_err(), "{text}");
        }
    }
}
