// Searches a candidate-search server from Node.js, knowing nothing but the .proto.
//
//   npm ci
//   node search.mjs localhost:50051 ../../../protos user 42
//   node search.mjs localhost:50051 ../../../protos like 50
//   node search.mjs localhost:50051 ../../../protos liked 50,181,100

import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { getProtoPath } from "google-proto-files";

const [target, protos, kind, value] = process.argv.slice(2);
const queries = {
  user: (id) => ({ userId: id }),
  like: (id) => ({ candidateId: id }),
  liked: (ids) => ({ examples: { likedCandidateIds: ids.split(",") } }),
};
if (!Object.hasOwn(queries, kind) || !value) {
  console.error("usage: node search.mjs TARGET PROTOS_FOLDER user|like|liked ID[,ID...]");
  process.exit(2);
}

const definition = loadSync("candidate_search/v1/candidate_search_service.proto", {
  includeDirs: [protos, getProtoPath("..")], // google/rpc/status.proto comes from the second
  arrays: true, // an empty list, where nothing is found
  enums: String,
  longs: Number,
});
const { CandidateSearchService } = loadPackageDefinition(definition).candidate_search.v1;
// Deal calls out in turn to all addresses of the target, and make those again that a server cancels
// or is not there for: one that stops, or has too much to do, leaves them to others.
const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "candidate_search.v1.CandidateSearchService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
};
const client = new CandidateSearchService(target, credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(serviceConfig),
});

const request = { query: queries[kind](value), candidateCount: 5 };
const deadline = new Date(Date.now() + 5000);
client.searchCandidates(request, { deadline }, (error, response) => {
  if (error) {
    console.error(error.message);
    process.exitCode = 1;
  } else {
    response.candidateIds.forEach((id, i) => console.log(`${id}\t${response.scores[i].toFixed(4)}`));
  }
  client.close();
});
