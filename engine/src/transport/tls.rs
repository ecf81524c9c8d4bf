//! The TLS of the lanes: version 1.3 only, mutual, under the pair's authority alone, the peer's member in the
//! certificate (OPS-093, OPS-095).
//!
//! Always: a certificate is accepted only if the pair's authority signed it, it is valid now, and it names the *peer*
//! member of the same pair; a member never accepts itself. Addresses and host names decide nothing. Session tickets
//! are off: each connection shows its certificate. Never: TLS 1.2, resumption, early data.
#![forbid(unsafe_code)]

use std::sync::Arc;

use ringpair_wire::{id::MemberId, lane::LaneKind};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    DistinguishedName, Error, OtherError, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    client::{
        UnbufferedClientConnection,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    server::{
        NoServerSessionStorage, ParsedCertificate, UnbufferedServerConnection, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::types::DownReason;
use crate::keys::{CertName, Identity};

/// The label of the heartbeat keys that are exported from a ping lane's session.
const HEARTBEAT_LABEL: &[u8] = b"EXPORTER-ringpair-heartbeat";
/// Key and key id.
pub(super) const HEARTBEAT_SECRET_BYTES: usize = 40;

/// What both ends of a lane are made from; cheap to clone.
#[derive(Clone)]
pub(super) struct TlsConfigs {
    server: Arc<ServerConfig>,
    /// One for each lane, in the order of [`LaneKind::ALL`]: the lane is named by ALPN.
    clients: [Arc<ClientConfig>; 3],
}

impl TlsConfigs {
    /// Configurations for this member's keys.
    pub(super) fn new(identity: &Identity) -> Result<Self, Error> {
        Self::with(identity, Arc::new(rustls::crypto::ring::default_provider()))
    }

    /// The same, by this cryptography.
    pub(super) fn with(identity: &Identity, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let verifier = Arc::new(PeerVerifier::new(identity, &provider)?);
        let chain = vec![identity.certificate.clone()];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), identity.key.clone_key())?;
        server.alpn_protocols = LaneKind::ALL.iter().map(|lane| lane.alpn().to_vec()).collect();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let client = |lane: LaneKind| -> Result<Arc<ClientConfig>, Error> {
            let mut client = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_client_auth_cert(chain.clone(), identity.key.clone_key())?;
            client.alpn_protocols = vec![lane.alpn().to_vec()];
            client.resumption = rustls::client::Resumption::disabled();
            client.enable_sni = false;
            Ok(Arc::new(client))
        };
        let clients = [client(LaneKind::Ping)?, client(LaneKind::Ds)?, client(LaneKind::Bulk)?];
        Ok(Self { server: Arc::new(server), clients })
    }

    /// The accepting end of a connection.
    pub(super) fn accept(&self) -> Result<Connection, Error> {
        ServerConnection::new(self.server.clone()).map(Connection::Server)
    }

    /// The same, without buffers of its own.
    pub(super) fn accept_unbuffered(&self) -> Result<UnbufferedServerConnection, Error> {
        UnbufferedServerConnection::new(self.server.clone())
    }

    /// The dialing end of a connection on `lane`.
    pub(super) fn dial(&self, lane: LaneKind) -> Result<Connection, Error> {
        let (config, name) = self.client(lane)?;
        ClientConnection::new(config, name).map(Connection::Client)
    }

    /// The same, without buffers of its own.
    pub(super) fn dial_unbuffered(&self, lane: LaneKind) -> Result<UnbufferedClientConnection, Error> {
        let (config, name) = self.client(lane)?;
        UnbufferedClientConnection::new(config, name)
    }

    fn client(&self, lane: LaneKind) -> Result<(Arc<ClientConfig>, ServerName<'static>), Error> {
        let index = match lane {
            LaneKind::Ping => 0,
            LaneKind::Ds => 1,
            LaneKind::Bulk => 2,
        };
        // The name stands for nothing: the verifier looks at the member in the certificate, and SNI is off.
        let name = ServerName::try_from("ringpair.invalid").map_err(|error| Error::General(error.to_string()))?;
        Ok((self.clients[index].clone(), name))
    }
}

/// The key (32 bytes) and key id (8 bytes) of the heartbeats that `sender` sends beside this session.
pub(super) fn heartbeat_secret(
    connection: &Connection,
    sender: MemberId,
) -> Result<[u8; HEARTBEAT_SECRET_BYTES], Error> {
    let context: &[u8] = match sender {
        MemberId::A => b"A",
        MemberId::B => b"B",
    };
    connection.export_keying_material([0; HEARTBEAT_SECRET_BYTES], HEARTBEAT_LABEL, Some(context))
}

/// What a TLS error means for the connection, in words that name the fault.
pub(super) fn reason(error: &Error) -> DownReason {
    let Error::AlertReceived(alert) = error else {
        return DownReason::Tls(match error {
            Error::NoCertificatesPresented => "the peer showed no certificate".into(),
            Error::InvalidMessage(_) => format!("not TLS, or not of this century ({error})"),
            other => other.to_string(),
        });
    };
    let hint = match alert {
        AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "it does not accept our certificate. Try: keys of one and the same `ringpair keys init` on both hosts"
        }
        AlertDescription::CertificateExpired => {
            "our certificate has expired there. Try: ringpair keys renew, or check the clocks"
        }
        AlertDescription::CertificateRequired => "it got no certificate from us",
        AlertDescription::ProtocolVersion => "it speaks no TLS 1.3",
        AlertDescription::NoApplicationProtocol => "it knows no such lane",
        _ => "see its log",
    };
    DownReason::RefusedByPeer(format!("TLS alert {alert:?}: {hint}"))
}

/// Accepts the peer's certificate and no other, as client and as server.
#[derive(Debug)]
struct PeerVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whom we expect.
    peer: CertName,
    ca_fingerprint: String,
}

/// A certificate that is sound but not the peer's, or not of this pair.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongCertificate(String);

impl PeerVerifier {
    fn new(identity: &Identity, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(identity.ca.clone())?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            roots,
            clients,
            algorithms: provider.signature_verification_algorithms,
            peer: CertName { pair: identity.pair.clone(), member: identity.member.peer() },
            ca_fingerprint: identity.ca_fingerprint.clone(),
        })
    }

    /// After the signature: is it the peer?
    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match CertName::of(certificate) {
            Some(name) if name == self.peer => Ok(()),
            Some(name) => Err(wrong(format!(
                "the certificate is that of member {} of pair {}, expected member {} of pair {}. Try: check the \
                 addresses of [members] and which directory of keys each host has",
                name.member, name.pair, self.peer.member, self.peer.pair
            ))),
            None => Err(wrong("the certificate names no pair and member. Try: keys made by ringpair keys init".into())),
        }
    }

    /// Names the fault of a foreign certificate by fingerprints (OPS-093).
    fn explain(&self, error: Error, certificate: &CertificateDer<'_>) -> Error {
        match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                wrong(format!(
                    "certificate {} is not signed by this pair's authority {}. Try: keys of one and the same `ringpair \
                     keys init` on both hosts",
                    crate::keys::fingerprint(certificate),
                    self.ca_fingerprint
                ))
            }
            other => other,
        }
    }
}

/// A typed error that carries text and is answered with the alert `certificate_unknown`.
fn wrong(text: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(WrongCertificate(text)))))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
        .map_err(|error| self.explain(error, end_entity))?;
        self.check_name(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A stranger is not told whose member this is.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .clients
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| self.explain(error, end_entity))?;
        self.check_name(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
