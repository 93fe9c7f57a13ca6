// Calls ModelStreamInfer with @grpc/grpc-js: node grpc_js.js HOST:PORT REQUEST_HEX
// Prints one line per response, in hex, and last the status as JSON.
const grpc = require('@grpc/grpc-js');
const [address, request] = process.argv.slice(2);
const client = new grpc.Client(address, grpc.credentials.createInsecure());
const raw = (bytes) => bytes;
const method = '/inference.GRPCInferenceService/ModelStreamInfer';
const call = client.makeBidiStreamRequest(method, raw, raw, { deadline: Date.now() + 60000 });
call.on('data', (bytes) => console.log(bytes.toString('hex')));
call.on('error', () => {}); // the status follows
call.on('status', (status) => {
  console.log(JSON.stringify({ code: grpc.status[status.code], details: status.details }));
  client.close();
});
call.write(Buffer.from(request, 'hex'));
call.end();
