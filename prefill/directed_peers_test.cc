#include "prefill/directed_peers.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

std::vector<uint64_t> Ids(const std::vector<DirectedPeer>& peers) {
  std::vector<uint64_t> ids;
  for (const DirectedPeer& peer : peers) ids.push_back(peer.incarnation.value());
  return ids;
}

std::vector<DirectedPeer> Peers(std::initializer_list<uint64_t> ids) {
  std::vector<DirectedPeer> peers;
  for (uint64_t id : ids) peers.push_back({.worker_id = "decode", .incarnation = Incarnation(id)});
  return peers;
}

TEST(DirectedPeersTest, LinksAreWantedThatAnyRouterNames) {
  DirectedPeers peers;
  EXPECT_THAT(Ids(peers.Set("a", Peers({1, 2}))), UnorderedElementsAre(1, 2));
  // One that has just started knows only some.
  EXPECT_THAT(Ids(peers.Set("b", Peers({2}))), UnorderedElementsAre(1, 2));
  EXPECT_THAT(Ids(peers.Set("b", Peers({2, 3}))), UnorderedElementsAre(1, 2, 3));
  EXPECT_THAT(Ids(peers.Set("a", Peers({2}))), UnorderedElementsAre(2, 3));
}

TEST(DirectedPeersTest, ALostRouterCountsNoMoreWhereAnotherOneIs) {
  DirectedPeers peers;
  peers.Set("a", Peers({1, 2}));
  peers.Set("b", Peers({2, 3}));
  EXPECT_THAT(Ids(peers.Lose("a")), UnorderedElementsAre(2, 3));
  EXPECT_THAT(Ids(peers.Lose("a")), UnorderedElementsAre(2, 3));
}

TEST(DirectedPeersTest, TheLastRoutersLinksStayUntilAnotherOneSaysOtherwise) {
  DirectedPeers peers;
  EXPECT_THAT(peers.Lose("a"), IsEmpty());
  peers.Set("a", Peers({1, 2}));
  EXPECT_THAT(Ids(peers.Lose("a")), UnorderedElementsAre(1, 2));
  EXPECT_THAT(Ids(peers.Set("b", Peers({2}))), UnorderedElementsAre(2));
}

}  // namespace
}  // namespace tandem
